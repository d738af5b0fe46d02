"""Several processes on one run: the same losses, every image once, and an end for all when one is lost."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import TCPStore

from backsight.core import UserError
from backsight.data import Batch, Splits, open_data
from backsight.options import ModelOptions, TrainOptions
from backsight.results import Result
from backsight.training import Processes, RunFolder, heartbeat, joined, loop, train_run
from backsight.training.norms import SharedBatchNorm, share_statistics
from backsight.training.run import Run
from numerics import assert_rounding
from pictures import drawn
from together import codes, command, forward_model, lines, together, train


def losses(folder: Path, kind: str = "losses") -> dict[int, Mapping[str, float]]:
    return {record["step"]: record[kind] for record in RunFolder(folder).metrics() if kind in record}


def assert_same_run(one: Path, other: Path) -> None:
    """The losses of every step, those of every evaluation, and the errors in the end agree.

    Training carries the rounding of each step on; a part of a batch that counts too much or too little changes a loss
    by a hundredth and more.
    """
    for kind in ("losses", "validation"):
        expected, found = losses(one, kind), losses(other, kind)
        assert expected.keys() == found.keys()
        for step, values in expected.items():
            assert found[step] == pytest.approx(values, rel=1e-4, abs=1e-4), (kind, step)
    first, second = (Result.load(folder / "evaluation.json") for folder in (one, other))
    assert first.images == second.images
    for each in first.measurements:
        assert second.one(**each.labels).by_seed() == pytest.approx(each.by_seed(), rel=1e-3), each.labels
    seen = [each.subjects[0]["training"]["images_seen"] for each in (first, second)]
    assert seen[0] == seen[1]


def train_logging_all(rank: int, family: str, out: Path, changes: Mapping[str, Any]) -> None:
    loop.LOG_EVERY = 1
    command(rank, family, out, changes)


@pytest.mark.parametrize(
    ("family", "count", "batch_size"),
    [("vit", 2, 5), ("detr", 2, 5), ("vit", 3, 2)],
    ids=["vit", "detr", "one-without-images"],
)
def test_processes_together_have_the_losses_of_one(family: str, count: int, batch_size: int, tmp_path: Path) -> None:
    changes = {"batch_size": batch_size, **({"inverse": ("backbone=deconvolution",)} if family == "detr" else {})}
    for name, number in {"one": 1, "many": count}.items():
        processes = together(number, tmp_path / "said", train_logging_all, family, tmp_path / name, changes)
        assert codes(processes, tmp_path / "said") == [0] * number, (tmp_path / "said").read_text()
    assert_same_run(tmp_path / "one", tmp_path / "many")
    assert sorted(losses(tmp_path / "one")) == [1, 2, 3, 4, 5, 6]
    assert list((tmp_path / "many" / "chains").iterdir()) == [tmp_path / "many" / "chains" / "0"]


def train_padded(rank: int, photos: Path, out: Path) -> None:
    """Some photos fill the image and some are padded: there are batches of which one process has the former alone."""
    del rank
    loop.LOG_EVERY = 1
    model = forward_model("detr").fitting("pad")
    inverses = ("backbone=local",)  # no BatchNorm: on two images its noise would drown the comparison
    train(model, out, task="classic", stage="encoder", data=f"folder:{photos}", inverse=inverses, batch_size=2)


def test_processes_with_and_without_padding_share_their_losses(tmp_path: Path) -> None:
    rows, columns = forward_model("detr").pixels.size
    for number in range(30):
        whole = number % 2 == 0
        picture = drawn(rows if whole else rows // 2, columns, number)
        (tmp_path / "photos").mkdir(exist_ok=True)
        picture.save(tmp_path / "photos" / f"{number}.png")
    for name, number in {"one": 1, "many": 2}.items():
        processes = together(number, tmp_path / "said", train_padded, tmp_path / "photos", tmp_path / name)
        assert codes(processes, tmp_path / "said") == [0] * number, (tmp_path / "said").read_text()
    assert_same_run(tmp_path / "one", tmp_path / "many")


def train_twice(rank: int, port: int, out: Path) -> None:
    """As under torchrun, whose own store all runs of a process go through."""
    os.environ.update({"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(port)})
    for name in ("first", "second"):
        command(rank, "vit", out / name, {})


def test_processes_can_train_twice(tmp_path: Path) -> None:
    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = together(2, tmp_path / "said", train_twice, agent.port, tmp_path)
    assert codes(processes, tmp_path / "said") == [0, 0], (tmp_path / "said").read_text()
    assert_same_run(tmp_path / "first", tmp_path / "second")


def fail_before_joining(rank: int, out: Path) -> None:
    model, module = forward_model("vit"), sys.modules["backsight.cli.main"]
    if rank == 1:
        torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2
        os.environ["LOCAL_RANK"] = "5"
    options = TrainOptions(data="world:prior", out=out)
    module.run_command = lambda arguments: train_run(model, options, ModelOptions(device="auto"))
    module.main([])


def test_a_process_without_a_gpu_ends_all_with_one_line(tmp_path: Path) -> None:
    said = tmp_path / "said"
    assert codes(together(2, said, fail_before_joining, tmp_path / "run"), said, limit=60) == [1, 2], said.read_text()
    (line,) = lines(said)
    assert "process 5 of this machine has no GPU, there are 2: start one process for each GPU" in line


def train_until_one_is_asked_to_stop(rank: int, out: Path) -> None:
    original = loop.Loop.step

    def step(self: loop.Loop, batch: Batch) -> None:
        original(self, batch)
        if rank == 1 and self.state.step == 4:  # a scheduler may tell one process alone
            signal.raise_signal(signal.SIGTERM)

    loop.Loop.step = step
    train_logging_all(rank, "vit", out, {})


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    said = tmp_path / "said"
    whole = together(1, said, train_logging_all, "vit", tmp_path / "whole", {})
    stopped = together(2, said, train_until_one_is_asked_to_stop, tmp_path / "parts")
    assert codes([*whole, *stopped], said) == [0, 0, 0]
    (line,) = lines(said)
    assert line == "backsight: stopped by SIGTERM after 4 steps: the same command with --resume goes on from there"
    assert codes(together(1, said, train_logging_all, "vit", tmp_path / "parts", {"resume": True}), said) == [0]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def train_until_one_is_lost(rank: int, out: Path, how: str) -> None:
    original = loop.Loop.step

    def step(self: loop.Loop, batch: Batch) -> None:
        original(self, batch)
        if rank == 1 and self.state.step == 3:
            if how == "mistaken":
                raise UserError("this process alone cannot read its picture")
            os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)

    loop.Loop.step = step
    command(rank, "vit", out, {"steps": 100000})


@pytest.mark.parametrize("how", ["killed", "frozen", "mistaken"])
def test_a_lost_process_ends_all_with_one_line(how: str, tmp_path: Path) -> None:
    said = tmp_path / "said"
    one, other = together(2, said, train_until_one_is_lost, tmp_path / "run", how)
    if how != "frozen":
        other.join(120)
    started = time.monotonic()
    one.join(120)
    if how != "frozen":
        assert time.monotonic() - started < 30
    other.kill()
    assert codes([one, other], said) == [1, 2 if how == "mistaken" else -signal.SIGKILL], said.read_text()
    (line,) = lines(said)
    assert ("cannot read its picture" if how == "mistaken" else "process 1 of 2 was lost") in line
    assert "Traceback" not in said.read_text()


class Store(dict[str, int]):
    """What processes share, with the beats of the others as they are told."""

    def add(self, name: str, more: int) -> int:
        self[name] = self.get(name, 0) + more
        return self[name]

    def compare_set(self, name: str, before: str, after: str) -> None:
        del before, after
        self[name] = 1

    def check(self, names: list[str]) -> bool:
        return all(name in self for name in names)


def test_no_process_is_lost_while_this_one_could_not_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them may read the same large file in one go, or sleep with their machine."""
    now, store = 0.0, Store()
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now)
    watching = heartbeat.Heartbeat(store, 0, 2)
    assert not watching._beat()
    now += 100
    assert not watching._beat()
    store.add("beat/1", 1)
    assert not any(watching._beat() for _ in range(heartbeat.SILENCE))
    store.add("beat/1", 1)
    assert [watching._beat() for _ in range(heartbeat.SILENCE + 2)] == [False] * (heartbeat.SILENCE + 1) + [True]


def test_parts_are_a_division() -> None:
    for count in (1, 2, 3, 7):
        for length in (0, 1, 5, 14):
            parts = [list(Processes(rank, count).part(range(length))) for rank in range(count)]
            assert [item for part in parts for item in part] == list(range(length))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def normalise(tensors: Mapping[str, torch.Tensor], processes: Processes) -> dict[str, torch.Tensor]:
    """A BatchNorm's outputs, gradients and state, of the whole batch."""
    network = nn.Sequential(nn.BatchNorm2d(4, momentum=0.3))
    nn.init.constant_(network[0].weight, 0.7)
    share_statistics(network, processes)
    assert isinstance(network[0], SharedBatchNorm) == (processes.count > 1)
    part = processes.part(range(7))
    values = tensors["values"][part].clone().requires_grad_()
    output = network(values)
    ((output - tensors["target"][part]).square().sum() / 7).backward()
    processes.add_gradients(network.parameters())
    whole = {name: processes.gather(each.detach()) for name, each in {"output": output, "input": values.grad}.items()}
    return {
        **{name: torch.cat(parts) for name, parts in whole.items()},
        **{f"{name} gradient": each.grad for name, each in network.named_parameters()},
        **network.state_dict(),
        "evaluated": network.eval()(tensors["values"]).detach(),
    }


def normalise_part(rank: int, folder: Path) -> None:
    with joined("cpu") as processes:
        found = normalise(torch.load(folder / "tensors", weights_only=True), processes)
        if rank == 0:
            torch.save(found, folder / "found")


def test_shared_batch_norm_is_batch_norm_of_the_whole_batch(tmp_path: Path) -> None:
    tensors = {"values": 3 + 5 * torch.randn(7, 4, 3, 2), "target": torch.randn(7, 4, 3, 2)}
    torch.save(tensors, tmp_path / "tensors")
    assert codes(together(3, tmp_path / "said", normalise_part, tmp_path), tmp_path / "said") == [0, 0, 0]
    assert_rounding(torch.load(tmp_path / "found", weights_only=True), normalise(tensors, Processes()))


def test_every_held_out_image_is_evaluated_once(tmp_path: Path) -> None:
    model = forward_model("vit")
    data: Splits = open_data("world:prior", model.pixels)
    options = TrainOptions(out=tmp_path, data="world:prior", batch_size=4, seeds=1, tracker="none")

    def ids(rank: int, count: int) -> list[tuple[str, ...]]:
        run = Run.of(model, options, RunFolder(tmp_path))
        run.processes = Processes(rank, count)
        return [batch.ids for batch in run.evaluator.batches(data.test, 10)]

    whole = ids(0, 1)
    parts: Any = zip(*(ids(rank, 3) for rank in range(3)), strict=True)
    assert [sum(step, ()) for step in parts] == whole
    assert [len(batch) for batch in whole] == [4, 4, 2]

"""Several processes on one run: the same losses as one, every image once, and an end for all when one is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from backsight import distributed
from backsight.core import UserError
from backsight.data import Batch, Splits, open_data, streams
from backsight.distributed import Processes, join, launched
from backsight.engine import StagedModel
from backsight.report.reconstruct import reconstruct
from backsight.reproduction import experiment
from backsight.results import Result
from backsight.shipped import find_shipped
from backsight.training import RunFolder, loop
from backsight.training.batches import HeldOut
from backsight.training.checkpoints import from_main
from backsight.training.run import Run
from marks import quick
from numerics import assert_same_values
from pictures import drawn, encoded, save_pictures
from together import codes, command, forward_model, free_port, lines, options, together, train

NO_BATCH_NORM = ("backbone=local",)
"""Its noise on few images, and its parts in several processes, would drown the comparison."""

JOINT = {"task": "joint", "trade_off": 0.9, "forward_learning_rate": 1e-3}

CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "modular": (2, "vit", {"batch_size": 5}),
    "micro-batches": (2, "detr", {"batch_size": 7, "micro_batch": 2}),
    "classic": (2, "detr", {"task": "classic", "batch_size": 5}),
    "classic-padded": (2, "detr", {"task": "classic", "stage": "encoder", "batch_size": 2, "data": "padded"}),
    "joint": (2, "detr", {**JOINT, "batch_size": 5}),
    "joint-isolated": (2, "detr", {**JOINT, "batch_size": 7, "micro_batch": 3, "update": "isolated"}),
    "joint-of-the-task-alone": (2, "detr", {**JOINT, "batch_size": 3, "trade_off": 0.0}),
    "joint-classifier": (2, "vit", {**JOINT, "batch_size": 5, "update": "sum", "data": "world:prior:single"}),
    "one-without-images": (3, "detr", {"batch_size": 2}),
    "joint-one-without-images": (3, "detr", {**JOINT, "batch_size": 2, "trade_off": 1.0}),
    "joint-focal": (3, "conditional_detr", {**JOINT, "batch_size": 4, "stage": "encoder"}),
}
"""Name -> processes, family, options."""

QUICK = ("micro-batches", "classic-padded", "joint-isolated", "joint-classifier", "one-without-images", "joint-focal")
"""Cases that have what the others have: in the fast suite they stand for all."""

BEGUN = ("micro-batches", "one-without-images")
"""Cases whose inverses begin by what they are told of true features, which all processes add up."""


def model_of_the_world(family: str) -> StagedModel:
    """A small model that knows as many classes as the drawn world has."""
    model = forward_model(family)
    module: Any = model.module
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if family == "vit":
            module.reset_classifier(8)
        else:
            module.config.num_labels = 8
            module.class_labels_classifier = nn.Linear(32, module.class_labels_classifier.out_features + 4)
    module.eval().requires_grad_(False)
    return StagedModel(module, model.spec, model.pixels, name="small", read=model.read)


def steps_of(name: str, folder: Path, processes: Processes, num_steps: int = 4) -> dict[str, Any]:
    """The losses of some steps, then those of an evaluation, and the weights in the end."""
    _, family, changes = CASES[name]
    model = model_of_the_world(family) if changes.get("task") == "joint" else forward_model(family)
    changes = {**changes}
    if changes.get("data") == "padded":
        model, changes = model.fitting("pad"), {**changes, "data": f"folder:{folder / 'photos'}"}
    given = {"inverse": NO_BATCH_NORM, "steps": 1000, "precision": "fp32", **changes}
    run = Run(model, options(folder / "run", **given), RunFolder(folder / name, writes=False), processes)
    training, found = run.loop(), []
    if name in BEGUN:
        run.begin_inverses(training.state)
    for batch in run.epoch(0, 0):
        training.step(batch)
        training.log_losses()
        found.append({str(key): value for key, value in training.losses.items()})
        if len(found) == num_steps:
            break
    training._share_statistics()
    losses, scores = run.validate()
    return {
        "losses": found,
        "validated": {str(key): value for key, value in losses.items()},
        "scores": scores,
        "images": training.state.images,
    }


def run_cases(rank: int, count: int, folder: Path, num_steps: int, names: Sequence[str]) -> None:
    processes = join("cpu")
    for name in names:
        if CASES[name][0] == count:
            found = steps_of(name, folder, processes, num_steps)
            if rank == 0:
                torch.save(found, folder / f"{name}.pt")


def write_padded_photos(folder: Path) -> None:
    """Some photos fill the image and some are padded: there are batches of which one process has the former alone."""
    rows, columns = forward_model("detr").pixels.size
    folder.mkdir()
    for number in range(30):
        whole = number % 2 == 0
        drawn(rows if whole else rows // 2, columns, number).save(folder / f"{number}.png")


@pytest.fixture(scope="module", params=[2, pytest.param(50, marks=pytest.mark.slow)], ids=["short", "long"])
def cases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """What two and three processes found in all cases; after two steps in the quick ones."""
    folder, names = tmp_path_factory.mktemp("cases"), QUICK if request.param == 2 else tuple(CASES)
    write_padded_photos(folder / "photos")
    for count in (2, 3):
        processes = together(count, folder / "said", run_cases, count, folder, request.param, names)
        assert codes(processes, folder / "said", 1200) == [0] * count, (folder / "said").read_text()
    return folder, request.param


@pytest.mark.parametrize("name", quick(CASES, *QUICK))
def test_several_processes_have_the_losses_of_one(name: str, cases: tuple[Path, int]) -> None:
    """Training carries the rounding of each step on; a part of a batch that counts too much or too little changes a
    loss by a hundredth and more."""
    folder, num_steps = cases
    if num_steps == 2 and name not in QUICK:
        pytest.skip("it is compared after fifty steps")
    many = torch.load(folder / f"{name}.pt", weights_only=False)
    one = steps_of(name, folder, Processes(), num_steps)
    # A detector that is trained too carries its rounding on the furthest: an object may go to another query.
    joint = name.startswith("joint")
    carried = (5e-4 if joint else 2e-5) if num_steps < 10 else (5e-3 if joint else 5e-5)
    for step, (found, expected) in enumerate(zip(many["losses"], one["losses"], strict=True), 1):
        assert found == pytest.approx(expected, rel=carried), step
    assert many["validated"] == pytest.approx(one["validated"], rel=max(carried, 1e-4))
    assert many["images"] == one["images"]
    assert many["scores"].keys() == one["scores"].keys()


# ---- stop, go on, be lost


def receive_a_checkpoint(rank: int, out: Path) -> None:
    weight = torch.arange(24.0).view(1, 6, 2, 2).to(memory_format=torch.channels_last)
    torch.save(from_main(join("cpu"), lambda: {"networks": {"0/backbone": {"weight": weight}}}), out / f"{rank}.pt")


def test_tensors_of_a_checkpoint_arrive_whatever_their_order_in_memory(tmp_path: Path) -> None:
    said = tmp_path / "said"
    assert codes(together(2, said, receive_a_checkpoint, tmp_path), said) == [0, 0], said.read_text()
    one, two = (torch.load(tmp_path / f"{rank}.pt")["networks"]["0/backbone"]["weight"] for rank in range(2))
    assert torch.equal(one, two)


def train_until_one_is_asked_to_stop(rank: int, out: Path) -> None:
    original = loop.Loop.step

    def step(self: loop.Loop, batch: Batch) -> None:
        original(self, batch)
        if rank == 1 and self.state.step == 4:  # a scheduler may tell one process alone
            signal.raise_signal(signal.SIGTERM)

    loop.Loop.step, loop.LOG_EVERY = step, 1
    command(rank, "vit", out, ANOTHER_NUMBER)


ANOTHER_NUMBER: dict[str, Any] = {"inverse": NO_BATCH_NORM, "recipe": "paper"}
"""At the fast recipe's rate, ten times that of the paper's, ten times as much comes of rounding."""


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "said"
    assert codes(together(2, said, train_until_one_is_asked_to_stop, tmp_path / "parts"), said) == [0, 0]
    (line,) = lines(said)
    assert line == "backsight: stopped by SIGTERM after 4 steps: the same command with --resume goes on from there"
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    for name, resume in {"parts": True, "whole": False}.items():
        train(forward_model("vit"), tmp_path / name, **ANOTHER_NUMBER, resume=resume)
    parts, whole = (RunFolder(tmp_path / name).metrics() for name in ("parts", "whole"))
    for one, other in zip(parts, whole, strict=True):
        for kind in one.keys() & {"losses", "validation"}:
            assert one[kind] == pytest.approx(other[kind], rel=1e-3)
    first, second = (Result.load(tmp_path / name / "evaluation.json") for name in ("parts", "whole"))
    assert first.images == second.images
    for each in first.measurements:
        assert second.one(**each.labels).by_seed() == pytest.approx(each.by_seed(), rel=1e-3), each.labels


def train_on_a_stream(rank: int, data: str, out: Path, stop: int, resume: bool) -> None:
    original, streams.BUFFER, loop.LOG_EVERY = loop.Loop.step, 10, 1

    def step(self: loop.Loop, batch: Batch) -> None:
        original(self, batch)
        if self.state.step == stop:
            signal.raise_signal(signal.SIGTERM)

    loop.Loop.step = step
    counts = {"steps": 14, "batch_size": 6, "max_validation": 2, "max_test": 2}
    command(rank, "vit", out, {"inverse": NO_BATCH_NORM, "data": data, "resume": resume, **counts})


@pytest.mark.slow
def test_processes_on_a_stream_go_on_at_their_shards(tmp_path: Path) -> None:
    datasets, said = pytest.importorskip("datasets"), tmp_path / "said"
    for shard in range(2):
        rows = [{"bytes": encoded(drawn(24, 32, 80 * shard + row), "PNG"), "path": None} for row in range(80)]
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / f"{shard}.parquet")
    data = f"stream:{tmp_path}/*.parquet"
    for name, stop, resume in (("whole", 0, False), ("parts", 9, False), ("parts", 0, True)):
        ended = codes(together(2, said, train_on_a_stream, data, tmp_path / name, stop, resume), said)
        assert ended == [0, 0], said.read_text()
    again = re.search(r"goes on at batch 9: (\d+) pictures before it are read again", said.read_text())
    assert again is not None
    assert int(again[1]) < 10  # of 27
    parts, whole = (RunFolder(tmp_path / name).metrics() for name in ("parts", "whole"))
    for one, other in zip(parts, whole, strict=True):
        for kind in one.keys() & {"losses", "validation"}:
            assert one[kind] == pytest.approx(other[kind], rel=1e-6)


def train_until_one_is_lost(rank: int, out: Path, how: str) -> None:
    original = loop.Loop.step

    def step(self: loop.Loop, batch: Batch) -> None:
        original(self, batch)
        if rank == 1 and self.state.step == 3:
            if how == "mistaken":
                raise UserError("this process alone cannot read its picture")
            os.kill(os.getpid(), signal.SIGKILL)

    loop.Loop.step = step
    command(rank, "vit", out, {"steps": 100000})


@pytest.mark.parametrize("how", ["killed", pytest.param("mistaken", marks=pytest.mark.slow)])
def test_when_one_process_is_lost_the_others_end_and_say_so(how: str, tmp_path: Path) -> None:
    said = tmp_path / "said"
    found = codes(together(2, said, train_until_one_is_lost, tmp_path / "run", how), said, 60)
    assert found == [1, 2 if how == "mistaken" else -signal.SIGKILL], said.read_text()
    assert any("another process of the run is gone: the same command with --resume" in line for line in lines(said))
    assert ("cannot read its picture" in said.read_text()) == (how == "mistaken")
    assert "Traceback" not in said.read_text()


# ---- torchrun


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
KILLED_TWICE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from backsight.training import loop
from together import command
original, mark = loop.Loop.step, Path({mark!r})
def step(self, batch):
    original(self, batch)
    restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
    if os.environ["RANK"] == "1" and restarts in "01" and self.state.step == 4 + 4 * int(restarts):
        os.kill(os.getpid(), signal.SIGKILL)
loop.Loop.step = step
command(0, "vit", Path({out!r}), {{"steps": 16, "evaluate_every": 2}})
"""


def test_processes_that_are_started_again_find_nothing_of_those_before() -> None:
    store = dist.HashStore()
    store.set("asks 1", "one that was killed")
    for _ in range(2):
        with ThreadPoolExecutor(2) as threads:
            parts = list(threads.map(lambda rank: distributed.fresh(store, rank, 2), (0, 1)))
        assert not parts[0].check(["address"])
        parts[0].set("address", "mine")
        assert parts[1].get("address") == b"mine"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchrun.sh", "accelerate.sh"])
def test_files_that_launch_start_two_processes(name: str, tmp_path: Path) -> None:
    given = {"PROCESSES": "2", "LAUNCH": "--multi_gpu --num_processes 2", "OUT": str(tmp_path / "run")}
    given |= {"MODEL": "zoo/vit-prior", "DATA": "world:prior:single"}
    given |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = Path(__file__).parents[1] / "docs" / "launch" / name
    few = [
        "--device",
        "cpu",
        "--steps",
        "2",
        "--seeds",
        "1",
        "--batch-size",
        "8",
        "--max-test",
        "20",
        "--max-validation",
        "20",
        "--workers",
        "0",
    ]
    launch = ["bash", str(script), *few]
    done = subprocess.run(launch, env=os.environ | given, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "processes: 2" in (tmp_path / "run" / "card.md").read_text()
    assert done.stderr.count("The inverse of encoder says little") == 1


@pytest.mark.slow
def test_torchrun_starts_a_run_again_after_each_kill(tmp_path: Path) -> None:
    script = tmp_path / "killed_twice.py"
    tests = str(Path(__file__).parent)
    script.write_text(KILLED_TWICE.format(tests=tests, mark=str(tmp_path / "mark"), out=str(tmp_path / "run")))
    launch = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--max-restarts", "3", str(script)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert RunFolder(tmp_path / "run").finished
    steps = [record["step"] for record in RunFolder(tmp_path / "run").metrics() if "validation" in record]
    assert steps == list(range(2, 17, 2))


@pytest.mark.slow
def test_a_run_goes_on_when_a_node_is_gone(tmp_path: Path) -> None:
    """Two nodes, one of which is killed with its process: the other starts again from the last checkpoint, alone."""
    script, run = tmp_path / "train.py", RunFolder(tmp_path / "run")
    changes = {"steps": 60, "evaluate_every": 2}
    script.write_text(
        f"import sys; from pathlib import Path; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from together import command; command(0, 'vit', Path({str(run.path)!r}), {changes})"
    )
    elastic = ["--nnodes", "1:2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--max-restarts", "3"]
    launch = [*TORCHRUN, *elastic, "--rdzv-endpoint", f"localhost:{free_port()}", str(script)]
    first = subprocess.Popen(launch)
    time.sleep(2)  # so that it is the one that holds the store
    second = subprocess.Popen(launch)
    try:
        deadline = time.monotonic() + 150
        while not any(record["step"] >= 6 for record in run.metrics()) and time.monotonic() < deadline:
            time.sleep(0.2)
        subprocess.run(["pkill", "-KILL", "-P", str(second.pid)], check=True)
        second.kill()
        assert first.wait(240) == 0
    finally:
        first.kill()
        second.kill()
    steps = [record["step"] for record in run.metrics() if "validation" in record]
    assert run.finished
    assert steps == list(range(2, 61, 2))


# ---- who does what


def test_srun_s_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    assert launched() == 1
    found = {
        "STEP_NUM_TASKS": "16",
        "PROCID": "9",
        "LOCALID": "1",
        "STEP_NODELIST": "gpu[07-08,12]",
        "JOB_ID": "123456",
    }
    for name, value in found.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert launched() == 16
    assert [os.environ[name] for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR")] == ["9", "1", "gpu07"]


def test_there_is_a_gpu_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="process 5 of this machine has no GPU, there are 2"):
        distributed._own_gpu()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert distributed._own_gpu() == 0  # it sees its own alone


def test_parts_are_a_division() -> None:
    for count in (1, 2, 3, 7):
        for length in (0, 1, 5, 14):
            parts = [list(Processes(rank, count).part(range(length))) for rank in range(count)]
            assert [item for part in parts for item in part] == list(range(length))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_every_held_out_image_is_evaluated_once(micro_batch: int | None, tmp_path: Path) -> None:
    model = forward_model("vit")
    data: Splits = open_data("world:prior", model.pixels)

    def ids(rank: int, count: int) -> list[tuple[str, ...]]:
        held_out = HeldOut(4, torch.device("cpu"), Processes(rank, count), [], micro_batch)
        return [batch.ids for batch in held_out.batches(data.test, 10)]

    whole = [identity for batch in ids(0, 1) for identity in batch]
    parts: Any = zip(*(ids(rank, 3) for rank in range(3)), strict=True)
    assert [identity for step in parts for part in step for identity in part] == whole
    assert len(whole) == 10


# ---- experiments


MEASURED = ("stage_error", "token_noise", "trust")


def do_experiments(rank: int, out: Path) -> None:
    del rank
    for name in MEASURED:
        experiment(name, out / name, models=["zoo/vit-prior"], images=24, device="cpu")


@pytest.mark.slow
def test_experiments_on_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    said = tmp_path / "said"
    assert codes(together(2, said, do_experiments, tmp_path / "two"), said) == [0, 0], said.read_text()
    for name in MEASURED:
        one = experiment(name, tmp_path / "one" / name, models=["zoo/vit-prior"], images=24, device="cpu")
        two = Result.load(tmp_path / "two" / name)
        assert (tmp_path / "two" / name / "report.html").is_file()
        assert two.images == one.images
        assert_same_values(two, one)


def reconstruct_photos(rank: int, chain: Path, photos: Path, out: Path) -> None:
    del rank
    reconstruct(chain, [photos], out, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["run", "chain"])
def test_reconstructions_of_two_processes_are_those_of_one(what: str, tmp_path: Path) -> None:
    """The errors of a chain without its run are measured on the pictures, of which the third batch has one alone."""
    shipped, said = find_shipped("zoo/vit-prior"), tmp_path / "said"
    assert shipped is not None
    photos = save_pictures(tmp_path / "photos", [f"{index:02}.png" for index in range(17)])
    given = {"run": shipped, "chain": shipped / "chains" / "0"}[what], photos
    assert codes(together(2, said, reconstruct_photos, *given, tmp_path / "two"), said) == [0, 0], said.read_text()
    one, two = reconstruct(given[0], [photos], tmp_path / "one", device="cpu"), Result.load(tmp_path / "two")
    assert_same_values(two, one)
    assert [each.labels for each in two.pictures] == [each.labels for each in one.pictures]
    for mine, other in zip(two.pictures, one.pictures, strict=True):
        assert mine.image == pytest.approx(other.image, abs=1.01 / 255)
    assert (tmp_path / "two" / "report.html").is_file()
    assert said.read_text().count("Unlike what the inverses were trained on") == 1


# ---- where processes do not fork


SCRIPT = """
import multiprocessing
import backsight as bs

if __name__ == "__main__":
    multiprocessing.set_start_method("{method}")
    bs.train("zoo/vit-prior", data="folder:photos", out="run", steps=3, seeds=1, batch_size=4, workers=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_training_starts_where_processes_do_not_fork(method: str, tmp_path: Path) -> None:
    save_pictures(tmp_path / "photos", [f"{index}.png" for index in range(40)])
    (tmp_path / "script.py").write_text(SCRIPT.format(method=method), encoding="utf-8")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "card.md").is_file()

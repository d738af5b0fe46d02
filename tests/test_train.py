"""Training: the same seed gives the same weights, a resumed run is the run that was never stopped."""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import filelock
import pytest
import torch

from backsight.chain import ChainEnsemble
from backsight.core import Key, UserError
from backsight.data import Batch
from backsight.distributed import Processes
from backsight.jobs import run_jobs
from backsight.models import MODELS
from backsight.options import ModelOptions, TrainOptions
from backsight.results import Result
from backsight.training import Budget, Interrupted, NotFinite, RunFolder, loop, train_run
from backsight.training.folder import LOCK
from backsight.training.loop import Loop
from backsight.training.merge import merge
from damage import flip
from pictures import save_pictures
from together import forward_model, same


def options(out: Path, **changes: object) -> TrainOptions:
    small = {"steps": 6, "seeds": 2, "batch_size": 4, "max_validation": 8, "max_test": 8, "workers": 0}
    return TrainOptions(**{"data": "world:prior", "out": out, **small, **changes})


def run(out: Path, family: str = "vit", **changes: object) -> ChainEnsemble:
    return train_run(forward_model(family), options(out, **changes), ModelOptions(device="cpu"))


def records(folder: Path, kind: str) -> list[dict]:
    """The lines of ``metrics.jsonl`` that have ``kind``."""
    return [record for record in RunFolder(folder).metrics() if kind in record]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below ``folder`` with its bytes, every folder without."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def after_step(monkeypatch: pytest.MonkeyPatch, do: Callable[[Loop], object]) -> None:
    """Call ``do`` with the loop after each of its steps."""
    original = Loop.step

    def step(self: Loop, batch: Batch) -> None:
        original(self, batch)
        do(self)

    monkeypatch.setattr(Loop, "step", step)


# ---- a whole run


FAST = ("vit", "detr")


@pytest.mark.parametrize(
    "family", [each if each in FAST else pytest.param(each, marks=pytest.mark.slow) for each in MODELS]
)
def test_every_family_trains_and_leaves_a_whole_run_folder(family: str, tmp_path: Path) -> None:
    ensemble = run(tmp_path / "run", family, steps=2, seeds=1)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.yaml", "metrics.jsonl", "chains", "mean_image.safetensors", "evaluation.json", "card.md")
    }
    assert same(ensemble, ChainEnsemble.from_pretrained(tmp_path / "run"))
    evaluation = Result.load(tmp_path / "run" / "evaluation.json")
    assert evaluation.values_of("stage") == [*ensemble.entries, "mean image"]
    assert evaluation.subjects[0]["num_images"] == 8
    assert "Random weights" in (tmp_path / "run" / "card.md").read_text()


def test_a_script_that_turned_gradients_off_trains(tmp_path: Path) -> None:
    with torch.set_grad_enabled(False):
        run(tmp_path / "run", steps=2)
        assert not torch.is_grad_enabled()
    assert RunFolder(tmp_path / "run").finished


def test_validation_errors_fall(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=60, seeds=1, evaluate_every=20, inverse=("backbone=patch:learning_rate=1e-2",))
    errors = [record["validation"] for record in records(tmp_path / "run", "validation")]
    assert len(errors) == 3
    assert all(errors[-1][name] < 0.95 * errors[0][name] for name in errors[0])


def test_same_seed_same_weights_other_seed_other_weights(tmp_path: Path) -> None:
    first = run(tmp_path / "a")
    assert same(first, run(tmp_path / "b"))
    assert not same(first, run(tmp_path / "c", seed=5))
    one, two = first.chains
    assert not torch.equal(next(one.parameters()), next(two.parameters()))


# ---- interrupted, resumed


def test_flows_too_are_trained_the_same_again_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flows = ("encoder@flow=flow:depth=1", "backbone@flow=flow:width=8,depth=1")
    given = {"evaluate_every": 2, "steps": 4, "seeds": 1, "inverse": flows}
    whole = run(tmp_path / "whole", **given)
    assert same(whole, run(tmp_path / "again", **given))
    with monkeypatch.context() as patch:
        after_step(patch, lambda loop: loop.state.step == 2 and signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            run(tmp_path / "parts", **given)
    assert same(whole, run(tmp_path / "parts", resume=True, **given))


@pytest.mark.parametrize(
    "stop", [pytest.param(1, id="between evaluations", marks=pytest.mark.slow), pytest.param(4, id="when one is due")]
)
def test_an_interrupted_run_resumes_to_the_same_weights(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", evaluate_every=2)
    with monkeypatch.context() as patch:
        after_step(patch, lambda loop: loop.state.step == stop and signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted, match="--resume"):
            run(tmp_path / "parts", evaluate_every=2)
    assert same(whole, run(tmp_path / "parts", evaluate_every=2, resume=True))
    one, other = (records(tmp_path / name, "validation") for name in ("whole", "parts"))
    assert one == other
    assert [each["step"] for each in one] == [2, 4, 6]


def test_resuming_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=2, seeds=1)
    (tmp_path / "run" / "card.md").unlink()
    with pytest.raises(UserError, match="batch_size"):
        run(tmp_path / "run", steps=2, seeds=1, batch_size=5, resume=True)
    with pytest.raises(UserError, match=r"started with data\.spec = world:prior, not world:defining: resume"):
        run(tmp_path / "run", steps=2, seeds=1, data="world:defining", resume=True)
    with pytest.raises(UserError, match="resume"):
        run(tmp_path / "run", steps=2, seeds=1)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"steps": 2, "seeds": 1, "keep_checkpoints": 2}
    whole = run(tmp_path / "run", **given)
    (tmp_path / "run" / "card.md").unlink()
    first, newest = RunFolder(tmp_path / "run").checkpoints.paths()
    flip(newest)
    assert same(whole, run(tmp_path / "run", **given, resume=True))
    (message,) = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert newest.name in message
    assert first.name in message
    (tmp_path / "run" / "card.md").unlink()
    for path in RunFolder(tmp_path / "run").checkpoints.paths():
        flip(path)
    with pytest.raises(UserError, match="overwrite"):
        run(tmp_path / "run", **given, resume=True)


def test_as_many_checkpoints_are_kept_as_requested_each_with_its_checksum(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=5, seeds=1, checkpoint_every=0.0, keep_checkpoints=3)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step-0000000{step}.pt{end}" for step in (3, 4, 5) for end in ("", ".sha256")]
    for path in RunFolder(tmp_path / "run").checkpoints.paths():
        line = path.with_name(f"{path.name}.sha256").read_text().split()
        assert line == [hashlib.sha256(path.read_bytes()).hexdigest(), path.name]


# ---- losses that are not finite


def poison(monkeypatch: pytest.MonkeyPatch, keys: list[Key], at: int) -> None:
    """Plant a NaN in the weights of some networks before step ``at``."""

    def do(loop: Loop) -> None:
        if loop.state.step == at - 1:
            for key in keys:
                with torch.no_grad():
                    next(loop.task.networks[key].parameters()).view(-1)[0] = math.nan

    after_step(monkeypatch, do)


@pytest.mark.parametrize(
    "evaluate_every",
    [pytest.param(10, id="back to the best"), pytest.param(30, id="back to a checkpoint", marks=pytest.mark.slow)],
)
def test_a_nan_in_one_inverse_leaves_the_others_untouched(
    evaluate_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"steps": 30, "evaluate_every": evaluate_every}
    whole = run(tmp_path / "whole", **given)
    poison(monkeypatch, [Key(1, "encoder")], 15)
    with pytest.raises(NotFinite, match=r"'encoder' \(seed 1\) at step 15; lower the learning rate"):
        run(tmp_path / "run", **given)
    assert len([record for record in caplog.records if "stops: its loss is nan" in record.getMessage()]) == 1
    left = ChainEnsemble.from_pretrained(tmp_path / "run")
    for chain, other in zip(whole.chains, left.chains, strict=True):
        for entry in chain.entries:
            pairs = list(zip(chain.inverses[entry].parameters(), other.inverses[entry].parameters(), strict=True))
            assert all(value.isfinite().all() for _, value in pairs)
            assert all(torch.equal(*pair) for pair in pairs) == (Key(chain.seed, entry) != Key(1, "encoder"))
    assert "'encoder' (seed 1) at step 15" in (tmp_path / "run" / "card.md").read_text()
    losses = [record["losses"] for record in records(tmp_path / "run", "losses")]
    assert losses[0].keys() - losses[-1].keys() == {"1/encoder"}


def test_when_no_loss_is_finite_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, [Key(0, "backbone"), Key(0, "encoder")], 3)
    with pytest.raises(UserError, match="no loss is finite"):
        run(tmp_path / "run", seeds=1, steps=20)
    assert not (tmp_path / "run" / "card.md").exists()


# ---- the folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is done."""
    run(tmp_path_factory.mktemp("finished") / "run", steps=1, seeds=1)
    return tmp_path_factory.getbasetemp() / "finished0" / "run"


def test_a_run_is_never_overwritten_silently(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(UserError, match="overwrite"):
        run(tmp_path / "run", steps=1, seeds=1)
    run(tmp_path / "run", steps=2, seeds=1, overwrite=True)


OWN_FILES = ("checkpoints/my-model.pt", "chains/a", "chains/0/notes.txt", "config.yaml", "card.md", "metrics.jsonl")


@pytest.mark.parametrize("name", [*OWN_FILES, "thesis.tex"])
@pytest.mark.parametrize("given", [{"overwrite": True}, {"resume": True}, {}], ids=["overwrite", "resume", "neither"])
def test_files_of_the_user_s_own_are_neither_deleted_nor_written_over(
    name: str, given: dict[str, bool], tmp_path: Path
) -> None:
    (tmp_path / "own" / name).parent.mkdir(parents=True)
    (tmp_path / "own" / name).write_text("command: make thesis")
    before = contents(tmp_path)
    if name == "thesis.tex" and given == {"overwrite": True}:
        run(tmp_path / "own", steps=1, seeds=1, **given)
        assert before.items() <= contents(tmp_path).items()
        return
    with pytest.raises(UserError, match="holds no run"):
        run(tmp_path / "own", steps=1, **given)
    assert contents(tmp_path) == before


def test_overwriting_removes_the_files_of_the_run_alone(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=2, seeds=2, checkpoint_every=0.0, keep_checkpoints=2)
    half = tmp_path / "run" / "chains" / "1" / ".encoder.safetensors.abcd_123.tmp.safetensors"
    half.write_bytes(b"killed")
    (tmp_path / "run" / "checkpoints" / "step-00000001.damaged").write_bytes(b"set aside")
    own = [tmp_path / "run" / name for name in (*OWN_FILES[:3], "thesis.tex", "notes/.draft.tmp", ".draft.tmp.tex")]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("ten years of work")
    run(tmp_path / "run", steps=1, seeds=1, overwrite=True)
    assert [path.read_text() for path in own] == ["ten years of work"] * len(own)
    for path in own:
        path.unlink()
    for name in ("notes", "checkpoints"):
        (tmp_path / "run" / name).rmdir()
    run(tmp_path / "new", steps=1, seeds=1)
    left, new = ({path.relative_to(out) for path in out.rglob("*")} for out in (tmp_path / "run", tmp_path / "new"))
    assert left == new


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tracker": "wandb"}, "pip install"),
        ({"memory": "1MiB"}, "too little"),
        ({"inverse": ("neck=local",)}, "no stage 'neck'"),
        ({"inverse": ("backbone=locl",)}, "no inverse 'locl'"),
        ({"inverse": ("backbone=patch:depth=3",)}, "has no .depth."),
        ({"data": "folder:nowhere"}, "nowhere"),
    ],
)
def test_a_refused_command_leaves_the_run_that_it_was_to_replace(
    given: dict[str, object], message: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    shutil.copytree(finished, tmp_path / "run")
    before = contents(tmp_path)
    for out in ("run", "new"):
        with pytest.raises(UserError, match=message):
            run(tmp_path / out, overwrite=True, **given)
    assert contents(tmp_path) == before


def test_a_picture_that_cannot_be_read_leaves_the_run_that_was_to_be_replaced(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    save_pictures(tmp_path / "photos", [f"{part}/{n}.png" for part in ("train", "val", "test") for n in range(2)])
    (tmp_path / "photos" / "train" / "1.png").write_text("text")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*1\.png"):
        run(
            tmp_path / "run",
            overwrite=True,
            data=f"folder:{tmp_path / 'photos'}",
            strict=True,
            recipe="ridge",
            steps=None,
        )
    assert contents(tmp_path) == before


def test_a_folder_is_held_by_one_run(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").claimed(resume=False, overwrite=False):
        for given in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(UserError, match=f"process {os.getpid()} on .* has a run in"):
                run(tmp_path / "run", steps=1, **given)
        with pytest.raises(UserError, match="has a run in"):
            RunFolder(tmp_path / "run").claimed(resume=False, overwrite=True).__enter__()
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "run" / LOCK).write_text("process 7 elsewhere\n")  # of a process that was killed
    run(tmp_path / "run", steps=1, seeds=1)
    assert not (tmp_path / "run" / LOCK).exists()


def test_on_a_file_system_without_locks_a_run_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    caplog.set_level(logging.INFO)
    with RunFolder(tmp_path).locked():
        assert len([record for record in caplog.records if "start no other run" in record.getMessage()]) == 1


# ---- time and budget


class Clock:
    """Stands still, but for a second a step and a hundred while losses are read: the wait for a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, add = 0.0, Processes.add
        after_step(monkeypatch, lambda _: self.go_on(1))
        monkeypatch.setattr(Processes, "add", lambda processes, each: (self.go_on(100), add(processes, each))[1])
        monkeypatch.setattr(loop, "time", self)
        monkeypatch.setattr(loop, "LOG_AFTER", math.inf)

    def go_on(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


def test_the_wait_for_a_device_is_time_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    run(tmp_path / "run", steps=25, seeds=1)
    seconds = {record["step"]: record["seconds"] for record in records(tmp_path / "run", "losses")}
    assert seconds == {10: 110, 20: 220, 25: 325}
    card = Result.load(tmp_path / "run" / "evaluation.json").subjects[0]["training"]
    assert card["images_per_second"] == round(100 / 325, 2)


def test_a_wait_that_ends_the_run_is_followed_by_the_last_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    run(tmp_path / "run", steps=None, minutes=3.5, seeds=1, checkpoint_every=1000.0, keep_checkpoints=2)
    assert [record["step"] for record in records(tmp_path / "run", "validation")] == [20]
    assert [each.stem for each in RunFolder(tmp_path / "run").checkpoints.paths()] == ["step-00000000", "step-00000020"]


def test_a_budget_ends() -> None:
    budget = Budget.of(None, 2, None, steps_an_epoch=50)
    assert budget.steps == 100
    assert budget.share(100, 0.0) == 1
    assert budget.share(50, 0.0) == 0.5
    assert Budget.of(None, None, 2.0, 10).share(7, 60) == pytest.approx(0.5)


# ---- runs of one seed each


def test_runs_of_one_seed_are_merged_into_one(tmp_path: Path) -> None:
    runs = [run(tmp_path / str(seed), steps=2, seeds=1, seed=seed) for seed in (4, 7)]
    merge([tmp_path / "4", tmp_path / "7"], tmp_path / "merged")
    found = ChainEnsemble.from_pretrained(tmp_path / "merged")
    assert [chain.seed for chain in found.chains] == [4, 7]
    assert same(found, ChainEnsemble([chain for each in runs for chain in each.chains]))
    result = Result.load(tmp_path / "merged" / "evaluation.json")
    assert result.subjects[0]["seeds"] == [4, 7]
    parts = [Result.load(tmp_path / name / "evaluation.json") for name in ("4", "7")]
    labels = {"stage": "encoder", "metric": "mse"}
    assert torch.equal(result.one(**labels).values, torch.cat([part.one(**labels).values for part in parts]))
    (record,) = records(tmp_path / "merged", "validation")
    assert set(record["validation"]) == {f"{seed}/{entry}" for seed in (4, 7) for entry in found.entries}
    with pytest.raises(UserError, match="each has to be there once"):
        merge([tmp_path / "4", tmp_path / "merged"], tmp_path / "again")
    with pytest.raises(UserError, match="holds no finished run"):
        merge([tmp_path / "4", tmp_path], tmp_path / "again")


def test_calls_are_done_as_jobs_and_failed_ones_are_named(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    calls = {"one": partial(Path.touch, tmp_path / "one"), "two": partial(Path.touch, tmp_path / "no" / "two")}
    with pytest.raises(UserError, match=r"two failed .*no/two"):
        run_jobs(calls, tmp_path / "jobs")
    assert (tmp_path / "one").exists()

"""Training: the same seed gives the same weights, a resumed run is the run that was never stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from backsight.chain import ChainEnsemble
from backsight.core import Key, Pixels, UserError
from backsight.data import Batch
from backsight.engine import RANDOM, StagedModel
from backsight.models import MODELS, stage_module
from backsight.options import ModelOptions, TrainOptions
from backsight.training import Budget, Interrupted, NotFinite, Processes, Run, RunFolder, lock, train, train_run
from backsight.training import loop as training
from backsight.training.loop import Loop
from small import small_pixels

SIZES = {"vit": (48, 48), "swin": (64, 64)}
"""(H, W) of the images of small modules; those of :func:`small_pixels` for all others."""


def forward_model(family: str = "vit") -> StagedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = MODELS[family].small()
    size = SIZES.get(family) or small_pixels(MODELS[family], module).size
    return stage_module(module, MODELS[family], Pixels(size), name=f"small-{family}", weights=RANDOM)


def options(out: Path, **changes: object) -> TrainOptions:
    small = {"steps": 6, "seeds": 2, "batch_size": 4, "max_validation": 8, "max_test": 8, "workers": 0}
    return TrainOptions(**{"data": "world:prior", "out": out, "tracker": "none", **small, **changes})


def run(out: Path, family: str = "vit", **changes: object) -> ChainEnsemble:
    return train_run(forward_model(family), options(out, **changes), ModelOptions(device="cpu"))


def weights(ensemble: ChainEnsemble) -> list[torch.Tensor]:
    return [value for chain in ensemble.chains for value in chain.state_dict().values()]


def same(one: ChainEnsemble, other: ChainEnsemble) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below ``folder`` with its bytes, every folder without."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("family", MODELS)
def test_every_family_trains_and_leaves_a_whole_run_folder(family: str, tmp_path: Path) -> None:
    ensemble = run(tmp_path / "run", family, steps=4)
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert found == {
        *("config.yaml", "metrics.jsonl", "checkpoints", "chains", "mean_image.safetensors"),
        *("evaluation.json", "card.md"),
    }
    loaded = ChainEnsemble.from_pretrained(tmp_path / "run")
    assert same(ensemble, loaded)
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert list(evaluation["entries"]) == ensemble.entries
    assert evaluation["num_images"] == 8
    assert "Random weights" in (tmp_path / "run" / "card.md").read_text()


def test_validation_errors_fall(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=120, seeds=1, evaluate_every=20, inverse=("backbone=patch:learning_rate=1e-2",))
    looks = [record["validation"] for record in RunFolder(tmp_path / "run").metrics() if "validation" in record]
    assert len(looks) == 6
    for name in looks[0]:
        assert looks[-1][name] < 0.8 * looks[0][name]


def test_same_seed_same_weights_other_seed_other_weights(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert same(first, second)
    assert not same(first, run(tmp_path / "c", seed=5))
    one, two = first.chains
    assert not torch.equal(next(one.parameters()), next(two.parameters()))


class StopAt:
    """A watcher that asks for a stop, as Ctrl-C does, after some step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, state: object, losses: object, share: float) -> None:
        if state.step == self.step:
            import signal

            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_an_interrupted_run_resumes_to_the_same_weights(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", evaluate_every=2)
    original = Run.loop

    def interrupted(self: Run) -> Loop:
        loop = original(self)
        monkeypatch.setattr(Run, "loop", original)
        step = loop.step
        loop.step = lambda batch: (step(batch), StopAt(stop)(loop.state, {}, 0.0))
        return loop

    monkeypatch.setattr(Run, "loop", interrupted)
    with pytest.raises(Interrupted, match="--resume"):
        run(tmp_path / "parts", evaluate_every=2)
    resumed = run(tmp_path / "parts", evaluate_every=2, resume=True)
    assert same(whole, resumed)
    losses = [
        [(r["step"], r["losses"]) for r in RunFolder(tmp_path / name).metrics() if "losses" in r]
        for name in ("whole", "parts")
    ]
    assert losses[0][-1][0] == losses[1][-1][0] == 6


def poisoned(monkeypatch: pytest.MonkeyPatch, key: Key, at: int) -> None:
    """Plant a NaN in the weights of the network ``key`` before step ``at``."""
    original = Loop.step

    def step(self: Loop, batch: Batch) -> None:
        if self.state.step == at - 1:
            with torch.no_grad():
                next(self.task.networks[key].parameters()).view(-1)[0] = math.nan
        original(self, batch)

    monkeypatch.setattr(Loop, "step", step)


@pytest.mark.parametrize("look", [10, 30])
def test_a_nan_in_one_inverse_leaves_the_others_untouched(
    look: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"steps": 30, "evaluate_every": look}
    whole = run(tmp_path / "whole", **asked)
    poisoned(monkeypatch, Key(1, "encoder"), 15)
    with pytest.raises(NotFinite, match=r"'encoder' \(seed 1\) at step 15; lower the learning rate") as caught:
        run(tmp_path / "run", **asked)
    assert "\n" not in str(caught.value)
    assert [record.message for record in caplog.records if "stops: its loss is nan" in record.message]
    left = ChainEnsemble.from_pretrained(tmp_path / "run")
    for chain, other in zip(whole.chains, left.chains, strict=True):
        for entry in chain.entries:
            pairs = list(zip(chain.inverses[entry].parameters(), other.inverses[entry].parameters(), strict=True))
            assert all(value.isfinite().all() for _, value in pairs)
            assert all(torch.equal(*pair) for pair in pairs) == (f"{chain.seed}/{entry}" != "1/encoder")
    assert "'encoder' (seed 1) at step 15" in (tmp_path / "run" / "card.md").read_text()
    losses = [record["losses"] for record in RunFolder(tmp_path / "run").metrics() if "losses" in record]
    assert "1/encoder" in losses[0]
    assert "1/encoder" not in losses[-1]
    assert losses[0].keys() > losses[-1].keys()


def test_when_no_loss_is_finite_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("backbone", "encoder"):
        poisoned(monkeypatch, Key(0, stage), 3)
    with pytest.raises(UserError, match="no loss is finite"):
        run(tmp_path / "run", seeds=1, steps=20)
    assert not (tmp_path / "run" / "card.md").exists()


def test_a_folder_is_never_overwritten_silently(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=1, seeds=1)
    with pytest.raises(UserError, match="overwrite"):
        run(tmp_path / "run", steps=1, seeds=1)
    run(tmp_path / "run", steps=2, seeds=1, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("ten years of work")
    with pytest.raises(UserError, match="holds no run"):
        run(tmp_path / "other", steps=1)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


OWN_FILES = ("checkpoints/my-model.pt", "chains/a", "chains/0/notes.txt", "config.yaml", "card.md", "metrics.jsonl")


@pytest.mark.parametrize("name", OWN_FILES)
@pytest.mark.parametrize("asked", [{"overwrite": True}, {"resume": True}, {}])
def test_what_no_run_wrote_is_neither_deleted_nor_written_over(
    name: str, asked: dict[str, bool], tmp_path: Path
) -> None:
    (tmp_path / "own" / name).parent.mkdir(parents=True)
    (tmp_path / "own" / name).write_text("command: make thesis")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="holds no run") as caught:
        run(tmp_path / "own", steps=1, **asked)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_overwriting_removes_the_files_of_the_run_alone(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=2, seeds=2, checkpoint_every=0.0)
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
    (tmp_path / "run" / "notes").rmdir()
    run(tmp_path / "new", steps=1, seeds=1)
    kept, new = ({path.relative_to(out) for path in out.rglob("*")} for out in (tmp_path / "run", tmp_path / "new"))
    assert kept == new


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tracker": "wandb"}, "pip install"),
        ({"memory": "1MiB"}, "is too little"),
        ({"memory": "8GiBs"}, "no amount of memory"),
        ({"image_cache": "a file"}, "is a file"),
        ({"feature_cache": "a file/within"}, "is a file"),
        ({"inverse": ("neck=local",)}, "no stage 'neck'"),
        ({"data": "folder:nowhere"}, "nowhere"),
    ],
)
def test_a_refused_command_leaves_the_run_that_it_was_to_replace(
    given: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "a file").write_text("no folder")
    given = {name: tmp_path / str(value) if name.endswith("cache") else value for name, value in given.items()}
    run(tmp_path / "run", steps=1, seeds=1)
    before = contents(tmp_path)
    for out in ("run", "new"):
        with pytest.raises(UserError, match=message) as caught:
            run(tmp_path / out, overwrite=True, **given)
        assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_a_folder_is_held_by_one_run(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").claimed(resume=False, overwrite=False):
        for asked in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(UserError, match=f"process {os.getpid()} on .* has a run in"):
                run(tmp_path / "run", steps=1, **asked)
            with pytest.raises(UserError, match="has a run in"):
                RunFolder(tmp_path / "run").claimed(resume=False, overwrite=True).__enter__()
        assert [path.name for path in (tmp_path / "run").iterdir()] == [lock.NAME]
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "run" / lock.NAME).write_text("elsewhere 7\n")  # of a process that was killed
    run(tmp_path / "run", steps=1, seeds=1)
    assert not (tmp_path / "run" / lock.NAME).exists()


@pytest.mark.parametrize("system", ["without locks", "with a file system without them"])
def test_without_locks_a_run_goes_on_and_says_so(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    without = None if system == "without locks" else SimpleNamespace(lockf=lockf, LOCK_EX=2, LOCK_NB=4)
    monkeypatch.setattr(lock, "_fcntl", without)
    caplog.set_level(logging.INFO)
    with lock.locked(tmp_path):
        assert len([record for record in caplog.records if "start no other run" in record.getMessage()]) == 1
    assert list(tmp_path.iterdir()) == []


def test_resuming_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=2, seeds=1)
    (tmp_path / "run" / "card.md").unlink()
    with pytest.raises(UserError, match="batch_size"):
        run(tmp_path / "run", steps=2, seeds=1, batch_size=5, resume=True)
    with pytest.raises(UserError, match="resume"):
        run(tmp_path / "run", steps=2, seeds=1)


def damage(path: Path) -> None:
    """Turn one bit, as a failing disk does."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(tmp_path / "run", steps=2, seeds=1)
    (tmp_path / "run" / "card.md").unlink()
    first, newest = RunFolder(tmp_path / "run").checkpoints()
    damage(newest)
    resumed = run(tmp_path / "run", steps=2, seeds=1, resume=True)
    told = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert len(told) == 1
    assert newest.name in told[0]
    assert first.name in told[0]
    assert same(whole, resumed)
    (tmp_path / "run" / "card.md").unlink()
    for path in RunFolder(tmp_path / "run").checkpoints():
        damage(path)
    with pytest.raises(UserError, match="overwrite"):
        run(tmp_path / "run", steps=2, seeds=1, resume=True)


def test_checkpoints_are_kept_as_asked_each_with_its_checksum(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=5, seeds=1, checkpoint_every=0.0, keep_checkpoints=3)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step-0000000{step}.pt{end}" for step in (3, 4, 5) for end in ("", ".sha256")]
    for path in RunFolder(tmp_path / "run").checkpoints():
        told = path.with_name(f"{path.name}.sha256").read_text().split()
        assert told == [hashlib.sha256(path.read_bytes()).hexdigest(), path.name]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 1, "minutes": 1.0}, "give one of"),
        ({"steps": 0}, "more than 0"),
        ({"seeds": 0}, "at least 1"),
        ({"inverse": ("neck=local",)}, "no stage 'neck'"),
        ({"inverse": ("backbone=locl",)}, "no inverse 'locl'"),
        ({"inverse": ("backbone",)}, "stage=inverse"),
        ({"inverse": ("backbone=patch:depth=3",)}, "does not fit"),
        ({"resume": True, "overwrite": True}, "give one of them"),
    ],
)
def test_options_that_cannot_be_meant(given: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path / "run", **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_inverses_can_be_replaced_and_added(tmp_path: Path) -> None:
    changes = ("backbone=local", "backbone@whole=patch:whole=true", "backbone@analytic=analytic")
    ensemble = run(tmp_path / "run", steps=2, seeds=1, inverse=changes)
    assert ensemble.entries == ["backbone", "backbone@analytic", "backbone@whole", "encoder"]
    assert isinstance(ensemble.chains[0].inverses["backbone"].layers[0], nn.Conv2d)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outt", "train has no option 'outt': did you mean 'out'?"),
        ("sise", "did you mean 'size'?"),
        ("xyzzy", "xyzzy'"),
    ],
)
def test_an_option_that_train_has_not_is_told(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        train("vit_tiny_patch16_224", **{name: str(tmp_path)})
    assert message in str(told.value)


def test_train_takes_a_name_and_options_as_keywords(tmp_path: Path) -> None:
    kept = options(tmp_path / "run", steps=1, seeds=1)
    ensemble = train(
        "vit_tiny_patch16_224",
        random_weights=True,
        size="32x48",
        **{name: value for name, value in vars(kept).items() if value is not None},
    )
    assert ensemble.model["weights"] == "random"
    assert ensemble.model["size"] == [32, 48]


class Clock:
    """Stands still, but for a second a step and a hundred while losses are read: the wait for a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, step, add = 0.0, Loop.step, Processes.add
        monkeypatch.setattr(Loop, "step", lambda loop, batch: (step(loop, batch), self.go_on(1))[0])
        monkeypatch.setattr(Processes, "add", lambda processes, each: (self.go_on(100), add(processes, each))[1])
        monkeypatch.setattr(training, "time", self)
        monkeypatch.setattr(training, "LOG_AFTER", math.inf)

    def go_on(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


def test_the_wait_for_a_device_is_time_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    run(tmp_path / "run", steps=25, seeds=1)
    told = {each["step"]: each["seconds"] for each in RunFolder(tmp_path / "run").metrics() if "losses" in each}
    assert told == {10: 110, 20: 220, 25: 325}
    card = json.loads((tmp_path / "run" / "evaluation.json").read_text())["card"]
    assert card["images_per_second"] == round(100 / 325, 2)


def test_a_wait_that_ends_the_run_is_followed_by_the_last_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    run(tmp_path / "run", steps=None, minutes=3.5, seeds=1, checkpoint_every=1000.0)
    looks = [each["step"] for each in RunFolder(tmp_path / "run").metrics() if "validation" in each]
    assert looks == [20]
    assert [path.stem for path in RunFolder(tmp_path / "run").checkpoints()] == ["step-00000000", "step-00000020"]


def test_budget_ends_and_schedules() -> None:
    budget = Budget.of(None, 2, None, steps_an_epoch=50)
    assert budget.steps == 100
    assert budget.share(100, 0.0) == 1
    rates = [budget.learning_rate(step, budget.share(step, 0)) for step in range(101)]
    assert max(rates) <= 1
    assert rates[0] < 0.2
    assert rates[-1] == pytest.approx(0.01)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert Budget.of(None, None, 2.0, 10).share(7, 60) == pytest.approx(0.5)

"""What goes wrong during a run: kills, signals, a second run, full disks, folders and workers that vanish, broken
pictures."""

from __future__ import annotations

import logging
import os
import platform
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backsight.chain import ChainEnsemble
from backsight.core import UserError
from backsight.data import loader, open_data
from backsight.io import write_checkpoint, write_text
from backsight.results import Result
from backsight.training import RunFolder
from backsight.training.checkpoints import Checkpoints, step_of
from together import codes, command, forward_model, lines, same, together, train

# Python 3.12 and later warn of every fork beside a thread; torch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

LONG = {"steps": 24, "batch_size": 2, "evaluate_every": 8, "checkpoint_every": 0.0, "max_validation": 2, "max_test": 2}
"""A checkpoint after every batch, so that many kills meet one that is being written."""

ENDLESS = {**LONG, "steps": 100000}


def newest_step(folder: Path) -> int:
    return max(map(step_of, RunFolder(folder).checkpoints.paths()), default=-1)


def start_until(step: int, out: Path, said: Path, changes: Mapping[str, Any], work: Callable = command) -> BaseProcess:
    """Start or resume the run in ``out``, and wait for the checkpoint of ``step``."""
    arguments = ("vit", out, changes) if work is command else (out, changes)
    (process,) = together(1, said, work, *arguments)
    deadline = time.monotonic() + 120
    while newest_step(out) < step and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    return process


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_ends_with_the_same_weights(kills: int, tmp_path: Path) -> None:
    draw, given = random.Random(kills), {**LONG, "steps": 12 if kills == 1 else 48}
    said, out = tmp_path / "said", tmp_path / "killed"
    undisturbed = together(1, said, command, "vit", tmp_path / "whole", given)
    for number in range(1, kills + 1):
        process = start_until(number * (given["steps"] - 8) // kills, out, said, {**given, "resume": True})
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL, said.read_text()
        assert not (out / "card.md").exists()
    assert codes([*undisturbed, *together(1, said, command, "vit", out, {**given, "resume": True})], said) == [0, 0]
    assert same(*map(ChainEnsemble.from_pretrained, (tmp_path / "whole", out)))
    assert "damaged" not in said.read_text()
    assert lines(said) == []
    assert not list(out.rglob("*.tmp*"))


@pytest.mark.slow
def test_a_run_is_alone_in_its_folder(tmp_path: Path) -> None:
    said, out = tmp_path / "said", tmp_path / "run"
    write_pictures(tmp_path / "photos")
    with_workers = {**LONG, "data": f"folder:{tmp_path / 'photos'}", "workers": 2}
    first = start_until(5, out, tmp_path / "of the first", with_workers)
    os.kill(first.pid, signal.SIGSTOP)  # or it would end before the others come
    for given in ({}, {"overwrite": True}, {"resume": True}):
        assert codes(together(1, said, command, "vit", out, {**with_workers, **given}), said) == [2]
        assert f"process {first.pid} on {platform.node()} has a run in {out}" in lines(said)[-1]
    first.kill()
    first.join()
    # At once, though the workers of the first may live still.
    assert codes(together(1, said, command, "vit", out, {**with_workers, "resume": True}), said) == [0]
    assert not list(out.glob(".*"))


@pytest.mark.slow
def test_of_two_runs_that_begin_together_one_is_refused(tmp_path: Path) -> None:
    said, out = tmp_path / "said", tmp_path / "run"
    both = [*together(1, said, command, "vit", out, LONG), *together(1, said, command, "vit", out, LONG)]
    assert sorted(map(str, codes(both, said))) == ["0", "2"], said.read_text()
    steps = [record["step"] for record in RunFolder(out).metrics() if "losses" in record]
    assert steps == sorted(set(steps))


def with_small_files(rank: int, out: Path, changes: Mapping[str, Any]) -> None:
    """No file may grow beyond 1.5 times the first checkpoint, or 64 KiB: the disk is full amid a later one, or this."""
    changes = dict(changes)
    if changes.pop("from the start"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
    original = Checkpoints._write

    def write(self: Checkpoints, step: int, state: Any) -> None:
        original(self, step, state)
        if step == 0:
            limit = self.paths()[0].stat().st_size * 3 // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    Checkpoints._write = write
    command(rank, "vit", out, changes)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on file sizes is Linux's")
@pytest.mark.parametrize("from_the_start", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(from_the_start: bool, tmp_path: Path) -> None:
    said, out = tmp_path / "said", tmp_path / "run"
    given = {"steps": 4, "from the start": from_the_start}
    assert codes(together(1, said, with_small_files, out, given), said) == [2]
    (line,) = lines(said)
    assert ("step-00000000.pt" if from_the_start else "step-00000003.pt") in line
    assert "Traceback" not in said.read_text()
    whole = [] if from_the_start else ["step-00000000.pt", "step-00000000.pt.sha256"]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == whole
    train(forward_model("vit"), out, steps=4, resume=True)
    train(forward_model("vit"), tmp_path / "whole", steps=4)
    assert same(*map(ChainEnsemble.from_pretrained, (tmp_path / "whole", out)))


def write_pictures(folder: Path, number: int = 60) -> None:
    """Photos with 2 % broken ones, 16-bit PNGs and CMYK JPEGs among them."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for index in range(number):
        values = noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        if index % 50 == 7:
            (folder / f"{index:03d}.jpg").write_bytes(b"\xff\xd8\xff\xe0 and then the card was pulled out")
        elif index % 10 == 3:
            Image.fromarray(values[..., 0].astype(np.uint16) * 257).save(folder / f"{index:03d}.png")
        elif index % 10 == 5:
            Image.fromarray(values).convert("CMYK").save(folder / f"{index:03d}.jpg")
        else:
            Image.fromarray(values).save(folder / f"{index:03d}.jpg")


def test_broken_and_odd_pictures_are_skipped_or_read_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pictures(tmp_path / "photos")
    with caplog.at_level(logging.WARNING):
        train(forward_model("vit"), tmp_path / "run", data=f"folder:{tmp_path / 'photos'}", steps=None, epochs=2.0)
    skipped = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert sorted("007.jpg" in line for line in skipped) == [False, True]  # once each, although seen twice
    card = Result.load(tmp_path / "run" / "evaluation.json").subjects[0]["training"]
    assert card["unreadable_images_skipped"] == 2
    assert card["images_seen"] == 2 * (54 - sum(name in str(skipped) for name in ("007.jpg", "057.jpg")))
    losses = [record["losses"] for record in RunFolder(tmp_path / "run").metrics() if "losses" in record]
    assert all(np.isfinite(list(each.values())).all() for each in losses)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_that_vanishes_is_one_line(workers: int, tmp_path: Path) -> None:
    said, out, photos = tmp_path / "said", tmp_path / "run", tmp_path / "photos"
    write_pictures(photos)
    process = start_until(5, out, said, {**ENDLESS, "data": f"folder:{photos}", "workers": workers})
    photos.rename(tmp_path / "elsewhere")
    assert codes([process], said) == [2]
    (line,) = lines(said)
    assert "photos has vanished" in line
    assert "--resume" in line
    assert "Traceback" not in said.read_text()
    assert not (out / "card.md").exists()
    assert RunFolder(out).checkpoints.load() is not None


def test_a_worker_that_is_killed_is_one_line_within_seconds(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 40)
    data = open_data(f"folder:{tmp_path / 'photos'}", forward_model("vit").pixels).train
    data.source.read = lambda index: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[union-attr]
    started = time.monotonic()
    with pytest.raises(UserError, match=r"a process that reads images was killed .* resume goes on"):
        list(loader(data, 4, workers=1))
    assert time.monotonic() - started < 30


def in_a_group(rank: int, out: Path, changes: Mapping[str, Any]) -> None:
    """With all its workers, as a scheduler or a terminal sees it."""
    os.setsid()
    command(rank, "vit", out, changes)


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        (signal.SIGTERM, 0, "stopped by SIGTERM after"),
        pytest.param(signal.SIGUSR1, 0, "stopped by SIGUSR1 after", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, "interrupted after", marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_all_processes_of_a_job_stops_it_with_a_checkpoint(
    number: signal.Signals, status: int, words: str, tmp_path: Path
) -> None:
    said, out = tmp_path / "said", tmp_path / "run"
    write_pictures(tmp_path / "photos")
    given = {**ENDLESS, "data": f"folder:{tmp_path / 'photos'}", "workers": 2}
    process = start_until(5, out, said, given, in_a_group)
    os.killpg(process.pid, number)
    assert codes([process], said) == [status], said.read_text()
    (line,) = lines(said)
    assert words in line
    assert f"after {newest_step(out)} steps: the same command with --resume goes on" in line
    assert "Traceback" not in said.read_text()


# ---- checkpoints elsewhere


def test_a_mirror_has_the_checkpoints_and_a_run_goes_on_from_it(tmp_path: Path) -> None:
    given = {"mirror": str(tmp_path / "mirror"), "evaluate_every": 2}
    whole = train(forward_model("vit"), tmp_path / "whole", **{**given, "mirror": None})
    original = Checkpoints._write

    def stop(self: Checkpoints, step: int, state: Any) -> None:
        original(self, step, state)
        if step == 4:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "_write", stop)
        with pytest.raises(Exception, match="stopped by SIGTERM"):
            train(forward_model("vit"), tmp_path / "lost", **given)
    mirrored = sorted(path.name for path in (tmp_path / "mirror" / "checkpoints").glob("*.pt"))
    assert mirrored == sorted(path.name for path in RunFolder(tmp_path / "lost").checkpoints.paths())
    assert same(whole, train(forward_model("vit"), tmp_path / "another machine", **given, resume=True))
    assert (tmp_path / "mirror" / "card.md").is_file()
    assert not (tmp_path / "mirror" / "checkpoints").exists()


def test_a_mirror_that_vanishes_is_named_and_nothing_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    train(forward_model("vit"), tmp_path / "run", mirror=str(tmp_path / "file" / "below"))
    assert "was not mirrored" in caplog.text
    assert (tmp_path / "run" / "card.md").is_file()
    with pytest.raises(UserError, match="no-such-store"):
        train(forward_model("vit"), tmp_path / "other", mirror="no-such-store://bucket")


# ---- a folder in which others have written


def test_foreign_lines_in_the_metrics_stop_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"step": 1, "loss": 2.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n"words"\n{"step": "x"}\n{"no": 1}\n\n')
    folder.log({"step": 2, "loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "lo')
    assert [record["step"] for record in folder.metrics()] == [1, 2]
    folder.forget_after(1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_with_every_checkpoint_damaged_each_try_to_resume_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "checkpoints" / "step-00000001.pt", {"step": 1})
    write_text(path.with_name(f"{path.name}.sha256"), f"{'0' * 64}  {path.name}\n")
    for _ in range(3):
        with pytest.raises(UserError, match="is damaged, and there is no checkpoint before it: overwrite begins again"):
            RunFolder(tmp_path).checkpoints.load()

"""Real processes: killed, interrupted, out of disk, and what they leave behind."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from backsight.chain import ChainEnsemble
from backsight.models import MODELS
from backsight.training import RunFolder


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The arguments that train inverses of a tiny saved ViT on the drawn world."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    shape = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    pretrained = {"input_size": [3, 48, 48], "mean": [0.5] * 3, "std": [0.5] * 3, "classifier": "head"}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "model_args": shape,
        "pretrained_cfg": pretrained,
    }
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(MODELS["vit"].small().state_dict(), folder / "model.safetensors")
    return (
        *("train", str(folder), "--data", "world:prior", "--tracker", "none", "--workers", "0", "--device", "cpu"),
        *("--steps", "150", "--seeds", "1", "--batch-size", "4", "--max-validation", "4", "--max-test", "4"),
        *("--evaluate-every", "20"),
    )


@contextmanager
def started(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, "-m", "backsight", *arguments], env=environment, **pipes, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        if any(int(path.stem.removeprefix("step-")) >= step for path in RunFolder(folder).checkpoints()):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {process.communicate()}")


def test_a_killed_run_resumes_to_the_same_weights(train: tuple[str, ...], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with started(*train, "--out", str(whole)) as undisturbed, started(*train, "--out", str(killed)) as victim:
        wait_for_step(killed, 40, victim)
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
        assert not (killed / "card.md").exists()
        with started(*train, "--out", str(killed), "--resume") as resumed:
            said = resumed.communicate(timeout=300)
            assert resumed.returncode == 0, said
        said = undisturbed.communicate(timeout=300)
        assert undisturbed.returncode == 0, said
    one, other = (ChainEnsemble.from_pretrained(path).chains[0].state_dict() for path in (whole, killed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list(killed.rglob("*.tmp*"))


def test_a_run_is_alone_in_its_folder(train: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with_workers = tuple(
        "2" if before == "--workers" else each for before, each in zip(("", *train), train, strict=False)
    )
    with started(*with_workers, "--out", str(out)) as first:
        wait_for_step(out, 20, first)
        first.send_signal(signal.SIGSTOP)  # or it would end before the others come
        for asked in ((), ("--overwrite",), ("--resume",)):
            with started(*train, "--out", str(out), *asked) as second:
                _, said = second.communicate(timeout=120)
            assert second.returncode == 2, said
            (line,) = [line for line in said.splitlines() if line]
            assert f"process {first.pid} on {platform.node()} has a run in {out}" in line
        first.kill()
        first.wait()
        with started(*train, "--out", str(out), "--resume") as resumed:  # at once, though its workers may live still
            assert resumed.wait(timeout=300) == 0
    assert not list(out.glob(".*"))


def test_of_two_runs_that_begin_together_one_is_refused(train: tuple[str, ...], tmp_path: Path) -> None:
    command = (*train, "--out", str(tmp_path / "run"))
    with started(*command) as one, started(*command) as other:
        said = [process.communicate(timeout=300)[1] for process in (one, other)]
    assert sorted((one.returncode, other.returncode)) == [0, 2], said
    steps = [record["step"] for record in RunFolder(tmp_path / "run").metrics() if "losses" in record]
    assert steps == sorted(set(steps))


def test_ctrl_c_is_one_line_and_status_130(train: tuple[str, ...], tmp_path: Path) -> None:
    with started(*train, "--out", str(tmp_path / "run")) as process:
        wait_for_step(tmp_path / "run", 20, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    last = [line for line in said.splitlines() if line.startswith("backsight:")]
    assert len(last) == 1
    assert "--resume" in last[0]
    assert "Traceback" not in said
    checkpoint = RunFolder(tmp_path / "run").load_checkpoint()
    assert checkpoint is not None
    assert f"after {checkpoint['state']['step']} steps" in last[0]


def small_files_only() -> None:
    """No file may grow beyond 64 KiB: what a full disk does, without filling one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on file sizes is Linux's")
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(train: tuple[str, ...], tmp_path: Path) -> None:
    with started(*train, "--out", str(tmp_path / "run"), preexec_fn=small_files_only) as process:
        _, said = process.communicate(timeout=180)
    assert process.returncode == 2, said
    lines = [line for line in said.splitlines() if line.startswith("backsight:")]
    assert len(lines) == 1
    assert "step-" in lines[0]
    assert "Traceback" not in said
    assert not list((tmp_path / "run" / "checkpoints").iterdir())

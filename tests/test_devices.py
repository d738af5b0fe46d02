"""Devices and precisions: what is there, what is not, and what autocast does."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backsight import devices
from backsight.core import UserError
from backsight.devices import CHOSEN_ALREADY, autocast, choose_device, choose_precision, keep_memory, peak_memory

CPU = torch.device("cpu")


PEAK = "import torch; from backsight.devices import peak_memory; print(peak_memory(torch.device('cpu')))"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system tells no other")
def test_the_peak_memory_of_a_process_is_not_that_of_its_parent() -> None:
    held = torch.ones(400, 2**20)
    said = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    assert 10**7 < int(said.stdout) < held.nbytes < peak_memory(CPU)


def test_auto_finds_a_device() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device().type in {"cpu", "cuda", "mps"}


@pytest.mark.parametrize("name", ["nose", "cuda:99", "cpu:x", "meta", "hpu"])
def test_a_missing_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"no device '{name}' on this machine"):
        choose_device(name)


def test_a_given_precision_is_used_and_auto_chooses_one() -> None:
    assert choose_precision("fp32", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("auto", CPU) in {"fp32", "bf16"}
    assert choose_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize(("gain", "expected"), [(1.2, "fp32"), (1.4, "bf16")])
def test_bf16_is_chosen_where_it_is_measured_to_be_worth_it(
    gain: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gain_of_bf16", lambda device, convolutions: gain)
    assert choose_precision("auto", CPU) == expected


def test_control_groups_limit_what_is_free(tmp_path: Path) -> None:
    """Version 1 names the kind of a group, version 2 has one of all kinds; those above limit as well."""
    (tmp_path / "own").write_text("4:memory:/job/step\n0::/job\n")
    for group, name, content in (
        ("memory/job/step", "memory.limit_in_bytes", "9000"),
        ("memory/job/step", "memory.usage_in_bytes", "5000"),
        ("memory/job/step", "memory.stat", "cache 1\ntotal_inactive_file 1000\n"),
        ("job", "memory.max", "max"),
        ("", "memory.max", "7000"),
        ("", "memory.current", "6000"),
        ("", "memory.stat", "inactive_file 500\n"),
    ):
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / name).write_text(content)
    assert sorted(devices._left_in_groups(tmp_path, tmp_path / "own")) == [1500, 5000]
    assert (devices.free_memory(CPU) or 0) > 0


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_its_precision(precision: str, expected: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is expected


def test_memory_is_in_bytes() -> None:
    assert 10**7 < peak_memory(CPU) < 10**12


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told to keep memory")
def test_freed_memory_is_kept_on_a_cpu_unless_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CHOSEN_ALREADY:
        monkeypatch.delenv(name, raising=False)
    assert not keep_memory(torch.device("cuda"))
    monkeypatch.setenv("LD_PRELOAD", "")
    assert not keep_memory(CPU)


KEEPING = """
import resource, torch
from backsight.devices import give_back_memory, keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64, 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
usual = faults()
assert keep_memory(torch.device("cpu"))
kept = min(faults() for _ in range(20))
give_back_memory()
print(usual, kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told to keep memory")
@pytest.mark.slow
def test_kept_memory_causes_no_page_faults_until_it_is_given_back() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN_ALREADY}
    said = subprocess.run([sys.executable, "-c", KEEPING], check=True, capture_output=True, text=True, env=environment)
    usual, kept, given_back = map(int, said.stdout.split())
    assert kept < usual / 10
    assert given_back > usual / 2

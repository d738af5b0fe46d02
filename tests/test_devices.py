"""Devices and precisions: what is there, what is not, and what autocast does."""

from __future__ import annotations

import pytest
import torch

from backsight.core import UserError
from backsight.devices import autocast, choose_device, choose_precision, peak_memory

CPU = torch.device("cpu")


def test_auto_finds_a_device() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device().type in {"cpu", "cuda", "mps"}


@pytest.mark.parametrize("name", ["nose", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(UserError, match=f"no device '{name}' on this machine: use auto, cpu, or a GPU's name"):
        choose_device(name)


def test_a_precision_is_what_was_asked_for() -> None:
    assert choose_precision("fp32", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("auto", CPU) in {"fp32", "bf16"}
    assert choose_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_its_precision(precision: str, expected: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is expected


def test_memory_is_in_bytes() -> None:
    assert 10**7 < peak_memory(CPU) < 10**12

"""Which device to compute on, and in which precision it is quick."""

from __future__ import annotations

import re
import resource
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from backsight.core import UserError


def choose_device(name: str = "auto") -> torch.device:
    """The device called ``name``; ``auto`` takes a GPU where there is one.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device '{name}' on this machine: use auto, cpu, or a GPU's name as cuda:0") from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """``fp32`` or ``bf16``; ``auto`` takes bf16 where the device has units for it (a recent GPU, a CPU with AMX)."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and _has_matrix_units() else "fp32"


def _has_matrix_units() -> bool:
    """A CPU without AMX computes bf16 products more slowly than fp32 ones."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(supported())


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """torch's autocast to bf16, or nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def peak_memory(device: torch.device) -> int:
    """The most memory used so far, in bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts in what the process was before it began another program
        kilobytes = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if kilobytes:
            return 1024 * int(kilobytes[1])
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024

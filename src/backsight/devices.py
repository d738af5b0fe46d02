"""Which device to compute on, in which precision, and how its memory is used."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from backsight.core import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h: how many free bytes at its end the heap gives back; how many blocks may lie outside of it."""

CHOSEN_ALREADY = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
"""Variables of the environment by which a user settles how memory is handed out."""


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


def exact(values: Tensor) -> Tensor:
    """``values`` in float64, so that a sum over many of them loses nothing, without their gradient.

    They stay where they are, but for Apple's GPUs, which have no float64: from there they go to the CPU first.
    """
    values = values.detach()
    return (values.cpu() if values.device.type == "mps" else values).double()


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


def keep_memory(device: torch.device) -> bool:
    """From now on, let this process keep what a step on a CPU frees, for the next step; whether it does.

    glibc gives a large block back to the kernel as soon as it is freed, and the next one comes page by page, each
    filled with zeros (and, in a virtual machine, often fetched from its host): up to half of a step. Kept, the same
    memory serves every step; the process holds its peak until it ends. Nothing is done without glibc, or where the
    environment has a say of its own (:data:`CHOSEN_ALREADY`).
    """
    mallopt = _of_glibc("mallopt")
    if device.type != "cpu" or mallopt is None or any(name in os.environ for name in CHOSEN_ALREADY):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def give_back_memory() -> None:
    """Give unused memory back to the kernel. A process that is forked now would hold all of it as well."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None

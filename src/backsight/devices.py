"""Which device to compute on, in which precision, and how its memory is used."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

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
        torch.zeros(1, device=device).item()  # the device "meta" has shapes and no values
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"no device '{name}' on this machine: use auto, cpu, or a GPU's name as cuda:0") from error
    return device


WORTH = 1.3
"""How many times as fast as fp32 bf16 has to be to be chosen."""


def choose_precision(name: str, device: torch.device, *, convolutions: bool = True) -> str:
    """``fp32`` or ``bf16``; ``auto`` takes bf16 where it was measured to be at least :data:`WORTH` times as fast.

    Args:
        name: ``auto``, ``fp32`` or ``bf16``.
        device: where to compute.
        convolutions: whether the networks have some, beside matrix products.
    """
    if name != "auto":
        return name
    return "bf16" if gain_of_bf16(device, convolutions=convolutions) >= WORTH else "fp32"


@cache
def gain_of_bf16(device: torch.device, *, convolutions: bool = True) -> float:
    """How many times as fast as in fp32 a small linear layer is in bf16, forward and backward under autocast, and a
    transposed convolution with it (``convolutions``); 0 where there is no bf16. It takes tens of milliseconds, once
    in a process."""
    if device.type not in ("cuda", "cpu"):
        return 0.0
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return 0.0
    old = platform.machine() in ("x86_64", "AMD64") and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    if device.type == "cpu" and old:  # torch's kernels for bf16 begin with AVX-512; some fail where it is told not to
        return 0.0
    wide = device.type == "cuda"
    layers: list[tuple[nn.Module, tuple[int, ...]]] = [(nn.Linear(768, 768), (16384 if wide else 1024, 768))]
    if convolutions:
        layers.append((nn.ConvTranspose2d(256, 128, 4, 2, 1), (64 if wide else 1, 256, 15, 20)))
    seconds, threads = {"fp32": 0.0, "bf16": 0.0}, torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other where others use the cores as well
    try:
        with unchanged([], device):
            for layer, shape in layers:
                layer, maps = layer.to(device), torch.randn(shape, device=device)
                turns = [{precision: _seconds(layer, maps, precision) for precision in seconds} for _ in range(4)]
                seconds = {each: seconds[each] + min(turn[each] for turn in turns[1:]) for each in seconds}
    finally:
        torch.set_num_threads(threads)
    return seconds["fp32"] / seconds["bf16"]


def _seconds(layer: nn.Module, maps: Tensor, precision: str) -> float:
    """What a pass takes, both ways; on a CPU the thread's own time."""
    clock = time.perf_counter if maps.device.type == "cuda" else time.thread_time
    _synchronise(maps.device)
    start = clock()
    with autocast(precision, maps.device):
        output = layer(maps)
    output.backward(torch.ones_like(output))
    _synchronise(maps.device)
    return clock() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def unchanged(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """For an attempt on ``device`` that is to change nothing: afterwards the buffers of ``modules`` and the random
    generators are as they were."""
    buffers = {buffer: buffer.clone() for module in modules for buffer in module.buffers()}
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)


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
    """The most memory used so far, in bytes: of the GPU, or of this process; 0 where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts in what the process was before it began another program
        kilobytes = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if kilobytes:
            return 1024 * int(kilobytes[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def memory_in_use(device: torch.device) -> int:
    """The bytes in use now: of the GPU, or of this process; 0 where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def free_memory(device: torch.device) -> int | None:
    """The bytes that this process may still take: of the GPU, or of the machine, its control groups heeded; divided
    among the processes that a launcher has started here. None where nobody knows."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    if device.type != "cpu" or found is None:
        return None
    return min([1024 * int(found[1]), *_left_in_groups()]) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _left_in_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What the control groups of this process, and those above them, leave of their limits: of both versions."""
    left = []
    with suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds not in ("", "memory"):
                continue
            names = ("memory.max", "memory.current", "inactive_file") if not kinds else (
                "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            )  # fmt: skip
            group = root / kinds / path.lstrip("/")
            for each in (group, *(parent for parent in group.parents if parent.is_relative_to(root / kinds))):
                with suppress(OSError, ValueError):  # no limit, or none that can be read
                    limit, used = (int((each / name).read_text()) for name in names[:2])
                    idle = re.search(rf"^{names[2]} (\d+)", (each / "memory.stat").read_text(), re.MULTILINE)
                    left.append(max(0, limit - used + (int(idle[1]) if idle else 0)))
    return left


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

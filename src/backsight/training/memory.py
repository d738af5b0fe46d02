"""How many images of a batch fit into memory at once, found by passing one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from backsight.core import UserError
from backsight.data import Batch
from backsight.devices import autocast
from backsight.options import UNITS, TrainOptions, parse_bytes
from backsight.tasks import Task

PASSING = 3
"""The largest tensors that exist for a moment beside what is saved for the backward pass: gradients of two maps, and
what an operation itself works on."""


def in_units(number: int) -> str:
    """A number of bytes as a user writes it, in the largest unit that it has one of."""
    unit = next((unit for unit in ("GiB", "MiB", "KiB") if number >= UNITS[unit.lower()]), "B")
    return f"{number / UNITS[unit.lower()]:.4g}{unit}"


def images_that_fit(task: Task, batch: Batch, limit: int, precision: str) -> int:
    """How many images of ``batch`` may pass the networks at once, so that training stays below ``limit`` bytes.

    To the memory in use come gradients and moments of all that is trained, and for each image what autograd saves for
    the backward pass of the network that needs most.

    Raises:
        UserError: not even one image does.
    """
    device = batch.images.device
    weights = [each for network in task.networks.values() for each in network.parameters()]
    learned = sum(each.numel() * each.element_size() for each in weights)
    fixed = in_use(device) + 3 * learned
    one = bytes_of_one(task, batch.part(0, 1), precision)
    if fixed + one > limit:
        raise UserError(
            f"--memory {in_units(limit)} is too little: one image needs {in_units(fixed + one)}; "
            "train fewer --seeds at once, or a smaller --size"
        )
    return (limit - fixed) // one


def bytes_of_one(task: Task, batch: Batch, precision: str) -> int:
    """The bytes that a ``batch`` of one image takes on its way forward and back; nothing is changed by it."""
    statistics = {buffer: buffer.clone() for network in task.networks.values() for buffer in network.buffers()}
    own = {weight.data_ptr() for network in task.networks.values() for weight in network.parameters()}
    saved: dict[int, int] = {}
    most = 0

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    devices = [batch.images.device] if batch.images.is_cuda else []
    with torch.random.fork_rng(devices), saved_tensors_hooks(save, lambda tensor: tensor):
        losses = task.losses(batch.images, batch.valid, batch.targets)
        with autocast(precision, batch.images.device):
            for _ in losses:
                most = max(most, sum(saved.values()) + PASSING * max(saved.values(), default=0))
                saved.clear()
    for buffer, value in statistics.items():
        buffer.copy_(value)
    return max(1, most)


def in_use(device: torch.device) -> int:
    """The bytes in use now: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0  # no such file on this system: what is learned and what passes is all that is counted
    return pages * os.sysconf("SC_PAGE_SIZE")


def choose_micro_batch(
    task: Task, options: TrainOptions, batches: Iterator[Batch], precision: str, before: Mapping[str, Any]
) -> int | None:
    """How many images pass the networks at once: as many as ``--micro-batch`` says, or as fit into ``--memory``.

    None stands for the whole batch. An image of ``batches`` is tried, if one is needed. A run that is resumed keeps to
    what it began with (``before``, its configuration): the memory in use is never the same twice, and BatchNorm depends
    on the number.
    """
    if options.memory is None:
        return options.micro_batch
    if "micro_batch" in before and before["options"]["memory"] == options.memory:
        return before["micro_batch"]
    batch = next((batch for batch in batches if batch.ids), None)
    if batch is None:
        raise UserError(f"none of the training images of {options.data} can be read")
    fitting = images_that_fit(task, batch, parse_bytes(options.memory), precision)
    return fitting if fitting < options.batch_size else None

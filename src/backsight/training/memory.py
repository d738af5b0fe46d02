"""What a run needs of memory, estimated before it begins, and how many images of a batch pass at once to fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from backsight.core import UserError
from backsight.data import Batch, Target
from backsight.devices import autocast, free_memory, memory_in_use, unchanged
from backsight.distributed import Processes
from backsight.options import UNITS, TrainOptions, parse_bytes
from backsight.tasks import Task

logger: logging.Logger = logging.getLogger(__name__)

PASSING = 3
"""The largest tensors that exist for a moment beside what is saved for the backward pass: gradients of two maps, and
what an operation itself works on."""

HELD = 1.4
"""How much more a process holds of what images take where it keeps what it frees (:func:`keep_memory`): blocks of one
map do not fit into the holes of another. Measured on DETR-R50: .70 GiB an image, of which .48 are in use."""

LEFT, LEFT_ON_CPU = 0.1, 0.2
"""The share of the free memory that ``--memory auto`` leaves to others, and to what is not counted. A CPU is
shared with other work, which comes and goes while a run trains, and who needs too much there is killed."""


def in_units(number: float) -> str:
    """A number of bytes as a user writes it, in the largest unit that it has one of."""
    unit = next((unit for unit in ("GiB", "MiB", "KiB") if number >= UNITS[unit.lower()]), "B")
    return f"{number / UNITS[unit.lower()]:.4g}{unit}"


@dataclass(frozen=True)
class Need:
    """The bytes that a run takes whatever its batches are, and for each image that passes its networks."""

    fixed: int
    image: int

    def of(self, images: int) -> int:
        """The peak with so many images at once."""
        return self.fixed + images * self.image


def need_of(task: Task, precision: str, processes: int = 1) -> Need:
    """What is in use, gradients, moments, and where the CPU computes the best weights, a checkpoint and the weights as
    the processes had them that were forked to read images; for each image what autograd saves for the backward pass of
    the network that needs most. One is tried."""
    sizes = {key: sum(each.nbytes for each in network.parameters()) for key, network in task.networks.items()}
    device, every = task.model.device, sum(sizes.values())
    # In one process those that a single loss trains have gradients at the same time.
    together = max((sum(sizes[key] for key in networks) for networks in task.covers.values()), default=0)
    gradients = every if processes > 1 or len(sizes) == 1 else together
    image = bytes_of_one(task, precision)
    beside, held = (0, image) if device.type == "cuda" else ((1 + 3 + 1) * every, int(HELD * image))
    return Need(memory_in_use(device) + gradients + 2 * every + beside, held)


def bytes_of_one(task: Task, precision: str) -> int:
    """The bytes that one image takes on its way forward and back; nothing is changed by it."""
    device, size = task.model.device, task.model.pixels.size
    valid = torch.ones(1, *size, dtype=torch.bool, device=device) if task.model.pixels.fit == "pad" else None
    box = torch.tensor([[0.0, 0.0, size[1] / 2, size[0] / 2]])
    target = Target(box, torch.zeros(1, dtype=torch.int64), None, torch.zeros(1, dtype=torch.bool), 0)
    batch = Batch(torch.zeros(1, 3, *size, device=device), ("one",), (target,), valid)
    own = {weight.data_ptr() for network in task.networks.values() for weight in network.parameters()}
    saved: dict[int, int] = {}
    most = 0

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = saved_tensors_hooks(save, lambda tensor: tensor)
    with unchanged(task.networks.values(), device), hooks, autocast(precision, device):
        for _ in task.losses(batch.images, batch.valid, batch.targets):
            most = max(most, sum(saved.values()) + PASSING * max(saved.values(), default=0))
            saved.clear()
    return max(1, most)


def choose_micro_batch(
    task: Task, options: TrainOptions, precision: str, before: Mapping[str, Any], processes: Processes | None = None
) -> tuple[int | None, Need | None]:
    """How many images pass the networks at once, None for the whole batch: as many as ``--micro-batch`` says, or as fit
    into ``--memory``; and what was estimated, where that was.

    A run that is resumed keeps to what it began with (``before``, its configuration): the memory in use is never the
    same twice, and BatchNorm depends on the number.

    Raises:
        UserError: not even one image fits.
    """
    processes = processes or Processes()
    if options.micro_batch is not None:
        return options.micro_batch, None
    had = before.get("options", {}).get("memory") or "auto"  # earlier versions have none
    if "micro_batch" in before and had == options.memory:
        return before["micro_batch"], None
    need = need_of(task, precision, processes.count)
    own = -(-options.batch_size // processes.count)
    limit = memory_limit(options.memory, task.model.device)
    if limit is None:
        return None, need
    (short, most) = processes.highest(need.of(1) - limit, -((limit - need.fixed) // need.image))
    if short > 0:
        checkpoints = "" if task.model.device.type == "cuda" else " (and a checkpoint, before it is on the disk)"
        raise UserError(
            f"{'--memory ' + options.memory if options.memory != 'auto' else in_units(limit) + ' of memory'} is too "
            f"little: one image needs {in_units(need.of(1))}{checkpoints}; train fewer --seeds at once, or a smaller "
            "--size"
        )
    fitting = int(-most)
    if fitting >= own:
        return None, need
    # Parts of one size: those of 19 and 13 images find each other's memory in pieces.
    fitting = -(-own // -(-own // fitting))
    if processes.main:
        logger.info(
            "%d images at once take %s and %s are there: batches pass in parts of %d (--micro-batch or --memory choose "
            "another number; BatchNorm sees a part alone)", own, in_units(need.of(own)), in_units(limit), fitting,
        )  # fmt: skip
    return fitting, need


def memory_limit(memory: str, device: torch.device) -> int | None:
    """The bytes that this process may hold by ``--memory``; None where nobody knows."""
    if memory != "auto":
        return parse_bytes(memory)
    free, left = free_memory(device), LEFT_ON_CPU if device.type == "cpu" else LEFT
    return None if free is None else memory_in_use(device) + int((1 - left) * free)

"""The processes that share a run: ``torchrun`` starts them, each takes its part of every batch.

All of them hold the same weights and take the same decisions; the main one alone writes. They communicate by
:class:`Processes`, which works for a process alone too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count as count_up
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from backsight.core import Key, UserError
from backsight.training.heartbeat import Heartbeat

Value = TypeVar("Value")

_NUMBERS = count_up()
"""Of the runs that this process joins, one after the other."""


class Processes:
    """``count`` processes of which this is number ``rank``; without arguments, one that works alone.

    Attributes:
        standing_in: this process has no image of its own in the batch, and computes with one that does not count.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        self.standing_in = False

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, items: Sequence[Value]) -> Sequence[Value]:
        """This process's part of ``items``: contiguous ones, as many as the others have or one more or less."""
        start, stop = (len(items) * place // self.count for place in (self.rank, self.rank + 1))
        return items[start:stop]

    # ---- numbers and tensors

    def total(self, *numbers: float) -> list[float]:
        """The sum of each number over all processes."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def highest(self, *numbers: float) -> list[float]:
        """The highest of each number among all processes."""
        return self._reduced(numbers, dist.ReduceOp.MAX)

    def _reduced(self, numbers: Sequence[float], operation: Any) -> list[float]:
        if self.count == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)  # on the CPU: no device is waited for
        dist.all_reduce(values, operation)
        return values.tolist()

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over all processes, in its place and on its device."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def shares(self, weights: Mapping[Key, Tensor | float]) -> Mapping[Key, Tensor | float]:
        """How much of every loss of the whole batch comes from this process: its share of all ``weights``."""
        if self.count == 1:
            return dict.fromkeys(weights, 1.0)
        if not any(isinstance(weight, Tensor) for weight in weights.values()):
            own: Sequence[float] = [float(weight) for weight in weights.values()]
            totals = self.total(*own)
            return {key: mine / total for key, mine, total in zip(weights, own, totals, strict=True)}
        parts = torch.stack([torch.as_tensor(weight).float() for weight in weights.values()])
        return dict(zip(weights, (parts / self.add(parts.clone())).unbind(), strict=True))

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; parameters without one have none anywhere."""
        gradients = [each.grad for each in parameters if each.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = self.add(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, summed in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def same_weights(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the main one's parameters and buffers."""
        if self.count > 1:
            for module in modules:
                for tensor in [*module.parameters(), *module.buffers()]:
                    dist.broadcast(tensor.data, 0)

    def wait(self) -> None:
        """Go on when all are here: nobody may leave while the main process still writes."""
        self.total(0.0)

    # ---- anything else

    def gather(self, value: Value) -> list[Value]:
        """What every process has, in the order of their numbers."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def from_main(self, compute: Callable[[], Value]) -> Value:
        """What ``compute`` gives the main process, for all; a user's mistake that it meets is one of all, too."""
        if self.count == 1:
            return compute()
        found: list[Any] = [None, None]
        if self.main:
            try:
                found[0] = compute()
            except UserError as error:
                found[1] = str(error)
        dist.broadcast_object_list(found, 0)
        if found[1] is not None:
            raise UserError(found[1])
        return found[0]


def launched() -> tuple[int, int]:
    """The number of this process among those that a launcher has started, and how many they are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that ``torchrun`` or ``accelerate launch`` started (by their environment variables).

    If one fails, or is killed, or its machine is gone, all end within half a minute, and one of them reports why.

    Args:
        device: where the run computes; NCCL connects GPUs, Gloo CPUs.

    Raises:
        WorkerLost: another process is gone.
    """
    if launched()[1] < 2:
        yield Processes()
        return
    store, rank, count = next(rendezvous("env://"))
    another, _, _ = next(rendezvous("env://"))  # a connection of its own
    number = next(_NUMBERS)  # a launcher's store outlives a run, and holds what an earlier one has left there
    heartbeat = Heartbeat(PrefixStore(f"beats of run {number}", another), rank, count)
    heartbeat.start()
    gpu = torch.cuda.is_available() and not device.startswith("cpu")
    try:
        if gpu and device in ("auto", "cuda"):
            torch.cuda.set_device(_own_gpu())
        own = PrefixStore(f"run {number}", store)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", store=own, rank=rank, world_size=count)
        yield Processes(rank, count)
        dist.barrier()
    except Exception as error:
        _leave(error, heartbeat)
        raise
    finally:
        heartbeat.stop()
    dist.destroy_process_group()


def _own_gpu() -> int:
    """The number of this process's GPU among those that it sees: all of its machine, or its own alone.

    Raises:
        UserError: there are more processes than GPUs.
    """
    place, seen = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= seen > 1:
        raise UserError(f"process {place} of this machine has no GPU, there are {seen}: start one process for each GPU")
    return place if place < seen else 0


def _leave(error: Exception, heartbeat: Heartbeat) -> None:
    """Tell the others of ``error``, or find out which of them it came from; each message is printed once.

    Raises:
        WorkerLost: it came from another that has not reported it itself.
        SystemExit: another process reports it.
    """
    if isinstance(error, RuntimeError) and not isinstance(error, UserError) and heartbeat.somebody_gone():
        raise heartbeat.loss() from error
    status = getattr(error, "status", 2 if isinstance(error, UserError | OSError) else None)
    if not heartbeat.tell(str(error)) and status is not None:
        raise SystemExit(status)

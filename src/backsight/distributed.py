"""The processes that share a run or an experiment: a launcher starts them, accelerate's ``PartialState`` knows them.

All hold the same weights and take the same decisions; the main one alone writes. torchrun, ``accelerate launch``,
``srun`` and Ray Train start them; torchrun's agent ends the others when one is lost, and starts all again.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from backsight.core import UserError

Value = TypeVar("Value")
Number = Tensor | float
"""A tensor without dimensions stays on its device."""

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another that is frozen, and not gone: what one does alone has to be over by then."""

GONE = "another process of the run is gone: the same command with --resume goes on from the last checkpoint"


class WorkerLost(Exception):
    """Another process of the run is gone. The command line ends with ``status``."""

    status = 1


@dataclass(frozen=True)
class Processes:
    """``count`` processes of which this is number ``rank``; without arguments, one that works alone."""

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, items: Sequence[Value]) -> Sequence[Value]:
        """This process's part of ``items``: contiguous ones, as many as the others have or one more or less."""
        start, stop = (len(items) * place // self.count for place in (self.rank, self.rank + 1))
        return items[start:stop]

    # ---- numbers and tensors

    def every(self, *numbers: float) -> list[list[float]]:
        """The numbers of every process, in the order of their ranks."""
        if self.count == 1:
            return [list(numbers)]
        found = [torch.zeros(len(numbers), dtype=torch.float64) for _ in range(self.count)]
        dist.all_gather(found, torch.tensor(numbers, dtype=torch.float64))  # on the CPU: no device is waited for
        return [each.tolist() for each in found]

    def highest(self, *numbers: float) -> list[float]:
        """The highest of each number among all processes."""
        return [max(each) for each in zip(*self.every(*numbers), strict=True)]

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over all processes, in its place and on its device."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def sums(self, tables: Sequence[Mapping[Any, Number]]) -> list[dict[Any, Number]]:
        """Several tables of the same numbers -> the same with the sum of each over all processes. Numbers that are
        tensors stay on their device."""
        if self.count == 1:
            return [dict(table) for table in tables]
        numbers = [number for table in tables for number in table.values()]
        if any(isinstance(number, Tensor) for number in numbers):
            device = next(number.device for number in numbers if isinstance(number, Tensor))
            added = self.add(torch.stack([torch.as_tensor(each, device=device).float() for each in numbers]))
            found: Iterator[Number] = iter(added.unbind())
        else:
            found = iter(self.add(torch.tensor(numbers, dtype=torch.float64)).tolist())
        return [{name: next(found) for name in table} for table in tables]

    def same_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the main one's ``tensors``, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def same_weights(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the main one's parameters and buffers."""
        self.same_tensors(each.data for module in modules for each in (*module.parameters(), *module.buffers()))

    def wait(self) -> None:
        """Go on when all are here."""
        self.every()

    # ---- anything else

    def gather(self, value: Value) -> list[Value]:
        """What every process has, in the order of their ranks."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def from_main(self, compute: Callable[[], Value]) -> Value:
        """What ``compute`` gives the main process, for all; what goes wrong there goes wrong in all, too.

        Raises:
            UserError: a mistake of the user.
            RuntimeError: anything else, in the other processes; in the main one it is raised as it is.
        """
        if self.count == 1:
            return compute()
        from accelerate.utils import broadcast_object_list

        found: list[Any] = [None, None, ""]
        failed: Exception | None = None
        if self.main:
            try:
                found[0] = compute()
            except Exception as error:
                failed, found = error, [None, isinstance(error, UserError), str(error)]
        broadcast_object_list(found, 0)
        if found[1] is not None:
            raise failed or (UserError if found[1] else RuntimeError)(found[2])
        return found[0]

    def gathered(self, compute: Callable[[], Value]) -> list[Value]:
        """What ``compute`` gives every process, in the order of their ranks; a mistake of the user that one meets is
        one of all.

        Raises:
            UserError: as above.
            RuntimeError: something else went wrong in another process.
        """
        try:
            found: tuple[Value | None, Exception | None] = compute(), None
        except Exception as error:
            found = None, error
        if self.count == 1 and found[1] is not None:
            raise found[1]
        parts = self.gather((found[0], None if found[1] is None else (isinstance(found[1], UserError), str(found[1]))))
        for failure in (failure for _, failure in parts if failure is not None):
            raise found[1] or (UserError if failure[0] else RuntimeError)(failure[1])
        return [part for part, _ in parts]  # pyright: ignore[reportReturnType]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process pass first, and the others once it is through: they find what it has left in a cache."""
        if self.count == 1:
            yield
            return
        from accelerate import PartialState

        with PartialState().main_process_first():
            yield


# ---- how they find each other


def launched() -> int:
    """How many processes a launcher has started, by their environment variables."""
    if "WORLD_SIZE" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        _read_slurm()
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes, and says what comes of it."""
    return launched() < 2 or int(os.environ.get("RANK", "0")) == 0


def restarted() -> bool:
    """Whether torchrun has started these processes again, after it had lost some."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _read_slurm() -> None:
    """What ``srun`` says of its tasks, in the words of torch: the first host of the step has the main process."""
    hosts = os.environ["SLURM_STEP_NODELIST"]
    first = re.match(r"([^\[,]+)(?:\[(\d+))?", hosts)
    port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000
    found = {
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": os.environ["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": "".join(filter(None, first.groups())) if first else hosts,
        "MASTER_PORT": str(port),
    }
    os.environ.update({**found, **os.environ})


def join(device: str = "auto") -> Processes:
    """Join the processes that a launcher has started; a process group that is there already is used as it is.

    Args:
        device: where to compute; NCCL connects GPUs, Gloo CPUs.

    Raises:
        UserError: there are more processes than GPUs.
    """
    if not (dist.is_available() and dist.is_initialized()):
        if launched() < 2:
            return Processes()
        gpu = torch.cuda.is_available() and not device.startswith("cpu")
        if gpu and device in ("auto", "cuda"):
            torch.cuda.set_device(_own_gpu())
        store, rank, count = next(rendezvous("env://", timeout=TIMEOUT))
        given: dict[str, Any] = {"store": fresh(store, rank, count), "rank": rank, "world_size": count}
        # It stays until the process ends, and serves all runs of it.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=TIMEOUT, **given)
        atexit.register(_leave)
    from accelerate import PartialState

    state = PartialState(cpu="nccl" not in str(dist.get_backend_config()))
    return Processes(state.process_index, state.num_processes)


def fresh(store: Store, rank: int, count: int) -> Store:
    """A part of a launcher's ``store`` that holds nothing of processes that it had started before these: the main one
    draws a name for it, and answers those alone that ask now."""
    if rank:
        own = uuid4().hex
        store.set(f"asks {rank}", own)
        name = store.get(f"answer to {own}").decode()
        store.set(f"{name} {rank}", "here")
        return PrefixStore(name, store)
    name, missing, deadline = uuid4().hex, set(range(1, count)), time.monotonic() + TIMEOUT.total_seconds()
    while missing and time.monotonic() < deadline:
        for other in [each for each in missing if store.check([f"asks {each}"])]:
            store.set(f"answer to {store.get(f'asks {other}').decode()}", name)
        missing = {each for each in missing if not store.check([f"{name} {each}"])}
        time.sleep(0.02)
    return PrefixStore(name, store)


@contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """:func:`join`; what goes wrong with all processes, or with a connection to one, is said once.

    Raises:
        WorkerLost: another process is gone.
        SystemExit: another process says what went wrong.
    """
    processes = join(device)
    if not processes.main:  # what all have to say the main one says
        logging.getLogger("backsight").setLevel(logging.WARNING)
    try:
        yield processes
    except Exception as error:
        if processes.count == 1:
            raise
        of_a_connection = isinstance(error, dist.DistError) or "onnection" in str(error) or "gloo" in str(error)
        if isinstance(error, RuntimeError) and of_a_connection:
            error = WorkerLost(GONE)
        status = getattr(error, "status", 2 if isinstance(error, UserError | OSError) else None)
        if status is not None and not _first_to_say(str(error)):
            raise SystemExit(status) from error
        raise error


def _first_to_say(message: str) -> bool:
    """Whether no other process has said ``message`` before; yes where the store is gone with the main process."""
    try:
        return dist.distributed_c10d._get_default_store().add(f"said: {message}", 1) == 1
    except RuntimeError:
        return True


def _leave() -> None:
    """So that torch has nothing to warn of at the end."""
    if dist.is_initialized():
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

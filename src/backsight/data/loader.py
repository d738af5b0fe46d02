"""Batches in an order that depends on the seed and the epoch alone, whoever decodes them."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from backsight.arrange import tensors_in
from backsight.core import UserError
from backsight.data.base import Batch, ImageData, PackedTargets, Sample, join_valid, pack, stack_images, unpack
from backsight.devices import give_back_memory

Part = Callable[[Sequence[int]], Sequence[int]]
"""The indices of a batch -> those that this process reads."""

IGNORED_BY_WORKERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals that the training process heeds: schedulers send them to every process of a job."""


def loader(
    data: ImageData,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = False,
    workers: int = 0,
    device: str | torch.device = "cpu",
    start: int = 0,
    limit: int | None = None,
    part: Part | None = None,
) -> Iterator[Batch]:
    """One epoch of ``data`` in batches ``B 3 H W``, the images on ``device``; the same ones for any ``workers``.

    Args:
        data: any data set; one with a method ``batch(indices)`` is asked for whole batches.
        batch_size: images in a batch. The last one may be smaller, and so is one that lost unreadable images: it may
            even be empty, since dropping it would shift the count that ``start`` relies on.
        seed: of the order.
        epoch: another order for each, if ``shuffle``.
        shuffle: in an order of (seed, epoch), or that of the data.
        workers: processes that decode; no more are started than this machine has cores.
        device: where the images go.
        start: batches to leave out at the beginning, without decoding them.
        limit: take only so many of the images, the first ones of the data.
        part: which part of every batch to give, a list of its indices -> those; it may be empty, as a batch may.

    Raises:
        UserError: under ``strict``, a picture that cannot be read.
    """
    num_items = len(data) if limit is None else min(limit, len(data))
    order = islice(batches(num_items, batch_size, seed=seed, epoch=epoch, shuffle=shuffle), start, None)
    chunks = order if part is None else map(part, order)
    yield from read_chunks(data, chunks, workers=workers, device=torch.device(device))


def read_chunks(data: Any, chunks: Iterable[Sequence[int]], *, workers: int, device: torch.device) -> Iterator[Batch]:
    """The images at every list of indices in ``chunks`` as a batch on ``device``, read ahead by ``workers``."""
    yield from read_ahead(WorkerBatches(data), data, chunks, workers=workers, device=device)


def read_ahead(
    worker_batches: Dataset[Any],
    data: object,
    sampler: Iterable[Sequence[int]] | None = None,
    *,
    workers: int,
    device: torch.device,
) -> Iterator[Batch]:
    """What ``worker_batches`` gives (:class:`WorkerBatch`, or a user's mistake) at every item of ``sampler``, as
    batches on ``device``, read ahead by ``workers``; ``data`` is told of pictures that could not be read.

    Raises:
        UserError: a user's mistake that came, or one of the workers was killed.
    """
    batches_to_come = DataLoader(
        worker_batches,
        batch_size=None,
        collate_fn=shared,
        sampler=sampler,
        num_workers=min(workers, cores()),
        pin_memory=device.type == "cuda",
        worker_init_fn=keep_signals,
        generator=torch.Generator(),  # else the loader would draw from the global one, which training depends on
    )
    if batches_to_come.num_workers:
        give_back_memory()  # what they are forked with stays theirs
    try:
        for worker_batch in batches_to_come:
            yield _opened(worker_batch, data, device)
    except RuntimeError as error:
        raise worker_lost(error) or error from error


def shared(worker_batch: Any) -> Any:
    """In a worker, the same in shared memory already: torch would put it there in a thread whose errors nobody hears,
    and the training process would wait for ever."""
    try:
        for tensor in tensors_in(worker_batch) if get_worker_info() else ():
            tensor.share_memory_()
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        return UserError(
            "/dev/shm is too small for the images that --workers read: give it more (as `docker run --shm-size 8g`), "
            "or --workers 0; --resume goes on with training"
        )
    return worker_batch


def worker_lost(error: Exception) -> UserError | None:
    """What torch means by ``error``, wherever it interrupts the main process, if a worker was killed."""
    found = re.search(r"DataLoader worker.* (?:killed by signal: ([\w ]+)|exited unexpectedly)", str(error))
    if found is None:
        return None
    reason = found[1] or "ended"
    full = ", /dev/shm is too small for its images" if "Bus" in reason or "shared memory" in str(error) else ""
    return UserError(
        f"a process that reads images was killed ({reason}{full}): give this machine more memory, or --workers 0; "
        "--resume goes on with training"
    )


def _opened(worker_batch: WorkerBatch | UserError, data: object, device: torch.device) -> Batch:
    if isinstance(worker_batch, UserError):
        raise worker_batch
    for identity, reason in worker_batch.unreadable.items():
        if isinstance(data, Skipping):
            data.record(identity, reason)
    if worker_batch.position is not None and isinstance(data, Positioned):
        data.positions[worker_batch.position[:2]] = worker_batch.position
    images = worker_batch.images.to(device, non_blocking=True)
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    valid = None if worker_batch.valid is None else worker_batch.valid.to(device, non_blocking=True)
    return Batch(images, tuple(worker_batch.ids), unpack(worker_batch.targets), valid)


def batches(
    num_items: int, batch_size: int, *, seed: int = 0, epoch: int = 0, shuffle: bool = False
) -> Iterator[list[int]]:
    """The indices of every batch of an epoch: each of ``num_items`` once, in an order of (seed, epoch) alone."""
    if shuffle:
        mixed = hashlib.sha256(f"{seed}:{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed[:7], "big"))
        order = torch.randperm(num_items, generator=generator).tolist()
    else:
        order = list(range(num_items))
    return (order[first : first + batch_size] for first in range(0, num_items, batch_size))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_signals(worker: int) -> None:
    """Let a worker live until the training process has finished its batch and ends it."""
    del worker
    for number in IGNORED_BY_WORKERS:
        signal.signal(number, signal.SIG_IGN)


# ---- whole batches on their way from a worker process


@runtime_checkable
class MadeInBatches(Protocol):
    """Data that makes a whole batch quicker than one sample at a time."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples at ``indices``, in that order."""
        ...


@runtime_checkable
class Skipping(Protocol):
    """Data with pictures that may turn out unreadable."""

    ids: Sequence[str]

    @property
    def unreadable(self) -> dict[str, str]:
        """Id -> reason, of those met so far."""
        ...

    def record(self, identity: str, reason: str) -> None:
        """Remember that a picture cannot be read, and say so once."""
        ...


class Position(NamedTuple):
    """Where ``reader`` of the ``readers`` of a stream is: ``given`` pictures came before, the next is that of pass
    ``turn``, number ``row`` of the shard at ``place`` in its part of that pass."""

    reader: int
    readers: int
    given: int = 0
    turn: int = 0
    place: int = 0
    row: int = 0


@runtime_checkable
class Positioned(Protocol):
    """Data that goes on from where its readers were."""

    positions: dict[tuple[int, int], Position]


class WorkerBatch(NamedTuple):
    """What a worker sends: tuples, because these torch moves to pinned memory by itself.

    ``images`` is uint8 where samples were decoded one by one: a quarter of the bytes on the way.
    """

    images: Tensor
    ids: Sequence[str]
    targets: PackedTargets
    unreadable: Mapping[str, str]
    valid: Tensor | None = None
    position: Position | None = None


class WorkerBatches(Dataset[Any]):
    """A data set whose items are whole batches, by the list of their indices.

    A user's mistake is returned and not raised: on its way from a worker torch would make many lines of it.
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __getitem__(self, indices: Sequence[int]) -> WorkerBatch | UserError:
        try:
            if isinstance(self.data, MadeInBatches) and indices:
                batch = self.data.batch(indices)
                return WorkerBatch(batch.images, batch.ids, pack(batch.targets), {}, batch.valid)
            samples = [self.data[index] for index in indices]
        except UserError as error:
            return error
        except OSError as error:
            return in_one_line(error)
        readable = [sample for sample in samples if sample is not None]
        targets = pack([s.target for s in readable])
        missing = self._missing(indices, samples)
        return WorkerBatch(stack_images(readable), [s.id for s in readable], targets, missing, join_valid(readable))

    def _missing(self, indices: Sequence[int], samples: Sequence[Sample | None]) -> dict[str, str]:
        """Id -> reason of the samples that could not be read."""
        if not isinstance(self.data, Skipping):
            return {}
        ids = [self.data.ids[index] for index, sample in zip(indices, samples, strict=True) if sample is None]
        return {identity: self.data.unreadable[identity] for identity in ids}


def in_one_line(error: OSError) -> UserError:
    """What a full disk, a folder that may not be written or a lost connection means to a user."""
    reason = error.strerror or " ".join(str(error).split())[:200] or type(error).__name__
    where = error.filename or "the images"
    return UserError(
        f"{where}: {reason}; make room or mend it (--resume goes on with training), or choose another place"
    )

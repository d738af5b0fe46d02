"""Batches in an order that depends on the seed and the epoch alone, whoever decodes them."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from backsight.core import UserError
from backsight.data.base import Batch, ImageData
from backsight.data.parcels import Parcel, Parcels, Skipping, unpack
from backsight.devices import give_back_memory

Part = Callable[[Sequence[int]], Sequence[int]]
"""The indices of a batch -> those that this process reads."""

KEPT_FROM_WORKERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
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
    device = torch.device(device)
    num_items = len(data) if limit is None else min(limit, len(data))
    order = batches(num_items, batch_size, seed=seed, epoch=epoch, shuffle=shuffle)[start:]
    parcels = DataLoader(
        Parcels(data),
        batch_size=None,
        sampler=order if part is None else [part(indices) for indices in order],
        collate_fn=as_it_is,
        num_workers=min(workers, cores()),
        pin_memory=device.type == "cuda",
        worker_init_fn=keep_signals,
        generator=torch.Generator(),  # else the loader would draw from the global one, which training depends on
    )
    if parcels.num_workers:
        give_back_memory()  # what they are forked with stays theirs
    for parcel in parcels:
        yield open_parcel(parcel, data, device)


def open_parcel(parcel: Parcel | UserError, data: object, device: torch.device) -> Batch:
    """What a worker has sent -> a batch on ``device``; ``data`` is told of pictures that could not be read.

    Raises:
        UserError: it is a user's mistake.
    """
    if isinstance(parcel, UserError):
        raise parcel
    for identity, reason in parcel.unreadable.items():
        if isinstance(data, Skipping):
            data.record(identity, reason)
    images = _to_unit(parcel.images.to(device, non_blocking=True))
    valid = None if parcel.valid is None else parcel.valid.to(device, non_blocking=True)
    return Batch(images, tuple(parcel.ids), unpack(parcel.targets), valid)


def batches(
    num_items: int, batch_size: int, *, seed: int = 0, epoch: int = 0, shuffle: bool = False
) -> list[list[int]]:
    """The indices of every batch of an epoch: each of ``num_items`` once, in an order of (seed, epoch) alone."""
    if shuffle:
        mixed = hashlib.sha256(f"{seed}:{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed[:7], "big"))
        order = torch.randperm(num_items, generator=generator).tolist()
    else:
        order = list(range(num_items))
    return [order[first : first + batch_size] for first in range(0, num_items, batch_size)]


def _to_unit(images: Tensor) -> Tensor:
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_signals(worker: int) -> None:
    """Let a worker live until the training process has finished its batch and ends it."""
    del worker
    for number in KEPT_FROM_WORKERS:
        signal.signal(number, signal.SIG_IGN)


def as_it_is(parcel: Any) -> Any:
    """A whole batch comes from the data set already."""
    return parcel

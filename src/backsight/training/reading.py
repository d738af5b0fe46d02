"""The batches of a run: which part of which a process reads, of data that has a length and of a stream."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import torch

from backsight.core import UserError
from backsight.data import Batch, ImageData, Stream, loader
from backsight.options import TrainOptions
from backsight.training.processes import Processes


def count_batches(data: ImageData, batch_size: int) -> int:
    """How many batches an epoch has, the last and smaller one included; a stream's never ends."""
    return sys.maxsize if isinstance(data, Stream) else math.ceil(len(data) / batch_size)


def length(data: ImageData) -> int | str:
    """How many images there are, where that is known."""
    return "a stream" if isinstance(data, Stream) else len(data)


def check_stream(options: TrainOptions) -> None:
    """Refuse what a data set without a length cannot give.

    Raises:
        UserError: one of the options, in one line.
    """
    if options.data.partition(":")[0] not in ("stream", "wds"):
        return
    if options.steps is None and options.minutes is None:
        raise UserError(
            f"'{options.data}' is a stream without a length, so it has no epochs: give --steps or --minutes"
        )
    for name in ("image_cache", "feature_cache"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} keeps images that come again, and a stream's are not known")
    if options.task == "joint":
        raise UserError("joint training needs data that can be read in any order: a stream cannot")


def train_batches(
    data: ImageData, options: TrainOptions, processes: Processes, device: torch.device, number: int, start: int
) -> Iterator[Batch]:
    """This process's part of the batches of epoch ``number``, from batch ``start`` on; a stream has one epoch only."""
    size, workers = options.batch_size, options.workers
    if isinstance(data, Stream):
        own = len(processes.part(range(size)))
        yield from data.batches(own, start, rank=processes.rank, ranks=processes.count, workers=workers, device=device)
    else:
        order = {"seed": options.seed, "epoch": number, "shuffle": True, "start": start}
        yield from loader(data, size, workers=workers, device=device, part=processes.part, **order)

"""The batches of a run: which part of which a process reads, of data that has a length and of a stream."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from backsight.core import Pixels
from backsight.data import Batch, ImageData, Splits, Stream, loader
from backsight.data.cache import Kept
from backsight.data.loader import MadeInBatches
from backsight.options import TrainOptions
from backsight.training.distributed import Processes


def count_batches(data: ImageData, batch_size: int) -> int:
    """How many batches an epoch has, the last and smaller one included; a stream's never ends."""
    return sys.maxsize if isinstance(data, Stream) else math.ceil(len(data) / batch_size)


def length(data: ImageData) -> int | str:
    """How many images there are, where that is known."""
    return "a stream" if isinstance(data, Stream) else len(data)


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


def cache_images(splits: Splits, options: TrainOptions, pixels: Pixels) -> Splits:
    """The same data, read from ``--image-cache`` once it has been decoded. Drawn scenes are quicker to draw again."""
    folder = options.image_cache
    if folder is None:
        return splits

    def cached(data: ImageData, share: float) -> ImageData:
        limit = share * options.image_cache_gb * 1e9
        return data if isinstance(data, MadeInBatches) else Kept(data, pixels, folder, limit)

    return replace(splits, train=cached(splits.train, 0.9), validation=cached(splits.validation, 0.1))

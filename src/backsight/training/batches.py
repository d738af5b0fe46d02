"""The batches of a run: which part of which a process reads to train on, and of held-out images, and the losses on
those."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from backsight.core import Key, Pixels, UserError
from backsight.data import Batch, ImageData, Splits, Stream, loader
from backsight.data.cache import ImageCache
from backsight.data.loader import MadeInBatches
from backsight.devices import autocast, exact
from backsight.distributed import Processes
from backsight.options import TrainOptions
from backsight.tasks import Task
from backsight.training.loop import StopRequested, split


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


def cache_images(splits: Splits, options: TrainOptions, pixels: Pixels, fingerprints: dict[str, str]) -> Splits:
    """The same data, read from ``--image-cache`` once it has been decoded. Drawn scenes are quicker to draw again."""
    folder = options.image_cache
    if folder is None:
        return splits

    def cached(part: str, share: float) -> ImageData:
        data: ImageData = getattr(splits, part)
        if isinstance(data, MadeInBatches):
            return data
        return ImageCache(data, pixels, folder, share * options.image_cache_gb * 1e9, fingerprints[part])

    return replace(splits, train=cached("train", 0.9), validation=cached("validation", 0.1))


def print_nothing(what: str, done: int, total: int) -> None:
    """Shows nobody how far an evaluation is."""


@dataclass
class HeldOut:
    """Validation and test images in batches of ``batch_size``, shared among ``processes``, until a signal comes.

    No more than ``micro_batch`` of them pass at once in a process.

    ``watch`` is told what is done with them, how many images are through and how many there are.
    """

    batch_size: int
    device: torch.device
    processes: Processes
    signals: list[int]
    micro_batch: int | None = None
    workers: int = 0
    watch: Callable[[str, int, int], object] = print_nothing

    def batches(self, data: ImageData, at_most: int, what: str = "evaluating") -> Iterator[Batch]:
        """This process's part of the first ``at_most`` images of ``data``, in batches, as long as no signal comes."""
        size = min(self.batch_size, (self.micro_batch or self.batch_size) * self.processes.count)
        for batch in self._read(data, at_most, size, what):
            if self.signals:
                return
            yield batch

    def _read(self, data: ImageData, at_most: int, size: int, what: str) -> Iterator[Batch]:
        total = min(len(data), at_most)
        # A few, or drawn ones, are there before processes are.
        workers = 0 if isinstance(data, MadeInBatches) or total <= 2 * size else self.workers
        options = {"workers": workers, "limit": at_most, "part": self.processes.part, "device": self.device}
        for number, batch in enumerate(loader(data, size, **options), 1):
            yield batch
            self.watch(what, min(number * size, total), total)

    def gather(self, found: Any) -> list[Any]:
        """What every process has ``found`` on its part, in their order.

        Raises:
            StopRequested: a signal to stop came to one of them.
        """
        parts = self.processes.gather((self.signals[0] if self.signals else 0, found))
        if number := max(number for number, _ in parts):
            raise StopRequested(number)
        return [part for _, part in parts]

    def losses(self, task: Task, data: ImageData, at_most: int, precision: str) -> dict[Key, float]:
        """The mean of every loss of ``task`` on the first ``at_most`` images of ``data``.

        Raises:
            UserError: none of them can be read.
            StopRequested: a signal to stop came to one of the processes.
        """
        sums = {name: exact(torch.zeros(2, device=self.device)) for name in task.covers}
        for batch in self._read(data, at_most, self.batch_size, "validating"):
            # All of them come to each loss, and leave together: some losses are averages over processes themselves.
            if signal := int(self.processes.highest(self.signals[0] if self.signals else 0)[0]):
                raise StopRequested(signal)
            for part, counts in split(batch, self.micro_batch, task, self.processes)[1]:
                own = task.weights(part) if counts is None else counts.own
                whole = own if counts is None else counts.whole
                with autocast(precision, self.device):
                    for name, loss, _ in task.losses(part.images, part.valid, part.targets, counts):
                        weights = [exact(torch.as_tensor(each[name], device=self.device)) for each in (whole, own)]
                        sums[name] += torch.stack([exact(loss) * weights[0], weights[1]])
        parts = self.gather({name: each.tolist() for name, each in sums.items()})
        totals = {name: [sum(each) for each in zip(*(part[name] for part in parts), strict=True)] for name in sums}
        if not all(weight for _, weight in totals.values()):
            raise UserError(f"none of the {len(data)} held-out images of {data.name} can be read")
        return {name: total / weight for name, (total, weight) in totals.items()}

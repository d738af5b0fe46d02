"""Batches of images that are not trained on, each process its part and every image once, and the losses on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from backsight.core import Key, UserError
from backsight.data import Batch, ImageData, loader
from backsight.devices import autocast, exact
from backsight.tasks import Task
from backsight.training.distributed import Processes
from backsight.training.signals import StopRequested


@dataclass
class Evaluator:
    """Validation and test images in batches of ``batch_size``, shared among ``processes``, until a signal comes."""

    batch_size: int
    device: torch.device
    processes: Processes
    signals: list[int]

    def batches(self, data: ImageData, at_most: int) -> Iterator[Batch]:
        """This process's part of the first ``at_most`` images of ``data``, in batches, as long as no signal comes."""
        for batch in loader(data, self.batch_size, limit=at_most, part=self.processes.part, device=self.device):
            if self.signals:
                return
            yield batch

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
        """
        sums = {name: exact(torch.zeros(2, device=self.device)) for name in task.covers}
        for batch in self.batches(data, at_most):
            if not batch.ids:
                continue
            weights = task.weights(batch)
            with autocast(precision, self.device):
                for name, loss, _ in task.losses(batch.images, batch.valid, batch.targets):
                    weight = exact(torch.as_tensor(weights[name], device=self.device))
                    sums[name] += torch.stack([exact(loss) * weight, weight])
        parts = self.gather({name: each.tolist() for name, each in sums.items()})
        totals = {name: [sum(each) for each in zip(*(part[name] for part in parts), strict=True)] for name in sums}
        if not all(weight for _, weight in totals.values()):
            raise UserError(f"none of the {len(data)} held-out images of {data.name} can be read")
        return {name: total / weight for name, (total, weight) in totals.items()}

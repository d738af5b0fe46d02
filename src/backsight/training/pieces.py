"""A batch that is too large for the memory, in pieces: their gradients are added up, the result is the same.

It is the same to rounding, since a batch's loss is the weighed mean of its pieces'. The exception is BatchNorm, as
everywhere: it normalises each piece by that piece's own mean and variance, and its running statistics follow them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from backsight.data import Batch
from backsight.tasks import Task

Share = Tensor | float


def cut(batch: Batch, size: int | None, task: Task) -> Sequence[tuple[Batch, Mapping[str, Share]]]:
    """``batch`` in pieces of at most ``size`` images (None: in one), and how much of every loss comes from each."""
    if size is None or len(batch.ids) <= size:
        return [(batch, dict.fromkeys(task.covers, 1.0))]
    pieces = [batch.part(start, min(start + size, len(batch.ids))) for start in range(0, len(batch.ids), size)]
    whole = task.weights(batch)
    return [(each, {name: own / whole[name] for name, own in task.weights(each).items()}) for each in pieces]

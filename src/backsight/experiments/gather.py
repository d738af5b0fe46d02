"""Values of all images, batch by batch: whatever is asked of a batch is asked while its features are at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from backsight.data import Batch
from backsight.experiments.subject import Subject

Key = TypeVar("Key")


def gather(subject: Subject, measure: Callable[[Batch], Mapping[Key, Tensor]]) -> dict[Key, Tensor]:
    """``measure`` of every batch, many quantities at once (``S B`` each, or ``B`` without seeds), joined over images.

    Returns:
        ``S images`` each, float64 on the CPU.
    """
    parts: dict[Key, list[Tensor]] = {}
    for batch in subject.batches:
        for key, values in measure(batch).items():
            values = values.detach().cpu().double()
            parts.setdefault(key, []).append(values[None] if values.ndim == 1 else values)
    return {key: torch.cat(values, 1) for key, values in parts.items()}


def by_seed(metric: Callable[[Tensor, Tensor], Tensor], reconstructions: Tensor, images: Tensor) -> Tensor:
    """``metric`` of ``S B 3 H W`` against ``B 3 H W``, ``S B``."""
    return torch.stack([metric(each, images) for each in reconstructions])

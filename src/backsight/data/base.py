"""What every data source gives: samples, batches, and the three splits that never share an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """What is known of one image, in the pixels of the image as the model sees it (n objects).

    ``boxes`` ``n 4`` (x0, y0, x1, y1), ``labels`` ``n`` (int64), ``masks`` ``n H W`` (bool) or None,
    ``crowd`` ``n`` (bool: a region of many, not to be counted), ``label`` the class of the whole image or None,
    ``attributes`` more per-object numbers by name (``n ...``), as the synthetic world knows them.
    """

    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    masks: Tensor | None = None
    crowd: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    label: int | None = None
    attributes: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One image: ``image`` ``3 H W`` uint8 RGB at the model's size, its ``id`` (unique in its source), its target."""

    image: Tensor
    id: str
    target: Target


@dataclass(frozen=True)
class Batch:
    """``images`` ``B 3 H W`` float in [0, 1], with ids and targets in the same order."""

    images: Tensor
    ids: tuple[str, ...]
    targets: tuple[Target, ...]


@runtime_checkable
class ImageData(Protocol):
    """A map-style data set: ``len(data)`` and ``data[i] -> Sample | None`` (None: unreadable, skipped and counted).

    ``fingerprint()`` is a hexadecimal digest that changes when an image, an annotation or the split does.
    """

    @property
    def name(self) -> str:
        """The user's own word for the data."""
        ...

    @property
    def classes(self) -> Mapping[int, str]:
        """Class names by label."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample | None: ...
    def fingerprint(self) -> str:
        """A hexadecimal digest of what the data is."""
        ...


@dataclass(frozen=True)
class Splits:
    """Training, validation and test data, disjoint by id: the best weights are picked on ``validation``,
    figures are reported on ``test``."""

    train: ImageData
    validation: ImageData
    test: ImageData


def collate(samples: Sequence[Sample | None]) -> Batch:
    """Samples -> a batch; unreadable ones (None) are left out. Images become float in [0, 1]."""
    readable = [sample for sample in samples if sample is not None]
    images = (
        torch.stack([sample.image for sample in readable]).float().div_(255) if readable else torch.zeros(0, 3, 0, 0)
    )
    return Batch(images, tuple(s.id for s in readable), tuple(s.target for s in readable))

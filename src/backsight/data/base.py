"""What every data source gives: samples, batches, and the three splits that never share an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from backsight.core import valid_sizes
from backsight.devices import exact


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

    def tensors(self) -> dict[str, Tensor]:
        """What is known of every object, by name: masks only where there are some, attributes by their own names."""
        masks = {} if self.masks is None else {"masks": self.masks}
        return {"boxes": self.boxes, "labels": self.labels, "crowd": self.crowd, **masks, **self.attributes}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], label: int | None = None) -> Self:
        """The inverse of :meth:`tensors`."""
        own = {name: tensors[name] for name in ("boxes", "labels", "masks", "crowd") if name in tensors}
        attributes = {name: tensors[name] for name in tensors if name not in own}
        return cls(**own, label=label, attributes=attributes)


@dataclass(frozen=True)
class Sample:
    """One image: ``image`` ``3 H W`` uint8 RGB at the model's size, its ``id`` (unique in its source), its target.

    ``valid`` ``H W`` (bool) says where the picture is in a padded image; None: everywhere.
    """

    image: Tensor
    id: str
    target: Target
    valid: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """``images`` ``B 3 H W`` float in [0, 1], with ids and targets in the same order.

    ``valid`` ``B H W`` (bool) says where the pictures are in padded images; None: everywhere, in all of them.
    """

    images: Tensor
    ids: tuple[str, ...]
    targets: tuple[Target, ...]
    valid: Tensor | None = None

    @property
    def shown(self) -> Tensor:
        """Where the pictures are, ``B H W`` bool, also where none is padded."""
        return torch.ones_like(self.images[:, 0], dtype=torch.bool) if self.valid is None else self.valid

    def part(self, start: int, stop: int) -> Batch:
        """Images ``start`` to ``stop`` - 1."""
        here = slice(start, stop)
        valid = None if self.valid is None else self.valid[here]
        return Batch(self.images[here], self.ids[here], self.targets[here], valid)

    def cut(self, index: int, picture: Tensor) -> Tensor:
        """What ``picture`` (``... H W``), of image ``index`` or painted of it, shows without the padding."""
        if self.valid is None:
            return picture
        ((rows, columns),) = valid_sizes(self.valid[[index]])
        return picture[..., :rows, :columns]

    def to(self, device: torch.device | str) -> Batch:
        """The same with what passes the networks on ``device``."""
        valid = None if self.valid is None else self.valid.to(device)
        return replace(self, images=self.images.to(device), valid=valid)


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
    images = stack_images(readable).float().div_(255)
    ids, targets = tuple(s.id for s in readable), tuple(s.target for s in readable)
    return Batch(images, ids, targets, join_valid(readable))


def stack_images(samples: Sequence[Sample]) -> Tensor:
    """The images of ``samples``, ``B 3 H W`` uint8; of none ``0 3 0 0``."""
    if not samples:
        return torch.zeros(0, 3, 0, 0, dtype=torch.uint8)
    return torch.stack([sample.image for sample in samples])


def join_valid(samples: Sequence[Sample]) -> Tensor | None:
    """Where the pictures of ``samples`` are in their images, ``B H W`` bool; None if none is padded."""
    if all(sample.valid is None for sample in samples):
        return None
    everywhere = torch.ones(samples[0].image.shape[-2:], dtype=torch.bool)
    return torch.stack([everywhere if sample.valid is None else sample.valid for sample in samples])


class PackedTargets(NamedTuple):
    """The targets of a batch, end to end: ``counts`` says how many objects of ``objects`` (by field) each has.

    Every tensor that a worker process sends takes an open file, and four for each image would soon be more than a
    system allows.
    """

    counts: list[int]
    labels: Sequence[int | None]
    objects: Mapping[str, Tensor]


def pack(targets: Sequence[Target]) -> PackedTargets:
    """Targets -> their objects end to end. All have masks or none has, and all have the same attributes."""
    tables = [target.tensors() for target in targets]
    objects = {name: torch.cat([table[name] for table in tables]) for name in (tables[0] if tables else ())}
    return PackedTargets([len(target.labels) for target in targets], [target.label for target in targets], objects)


def unpack(packed: PackedTargets) -> tuple[Target, ...]:
    """The inverse of :func:`pack`."""
    if not packed.counts:
        return ()
    split = zip(*(values.split(packed.counts) for values in packed.objects.values()), strict=True)
    tables = [dict(zip(packed.objects, values, strict=True)) for values in split]
    return tuple(Target.of(table, label) for table, label in zip(tables, packed.labels, strict=True))


def sum_images(batch: Batch) -> tuple[Tensor, Tensor | int]:
    """The sum of a batch's images, ``3 H W`` float64, and over how many of them it goes at each pixel: ``H W``, or one
    number where none is padded."""
    images = exact(batch.images)
    if batch.valid is None:
        return images.sum(0), len(batch.ids)
    valid = batch.valid.to(images.device)
    return (images * valid[:, None]).sum(0), valid.sum(0)


def mean_of(images: Tensor, counts: Tensor | int) -> Tensor:
    """The mean image, of what :func:`sum_images` gives.

    Where nothing was summed (padding, in all of them) it has the mean colour.
    """
    if isinstance(counts, int):
        return images / counts
    colour = images.sum((1, 2), keepdim=True) / counts.sum()
    return torch.where(counts > 0, images / counts.clamp(min=1), colour)

"""Whole batches on their way from a worker process: few tensors, few bytes, and mistakes as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from backsight.core import UserError
from backsight.data.base import Batch, ImageData, Sample, Target, join_valid


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


class PackedTargets(NamedTuple):
    """The targets of a batch, end to end: ``counts`` says how many objects of ``objects`` (by field) each has.

    Every tensor that is sent takes an open file, and four for each image would soon be more than a system allows.
    """

    counts: list[int]
    labels: list[int | None]
    objects: Mapping[str, Tensor]


class Parcel(NamedTuple):
    """What a worker sends: tuples, because these torch moves to pinned memory by itself.

    ``images`` is uint8 where samples were decoded one by one: a quarter of the bytes on the way.
    """

    images: Tensor
    ids: Sequence[str]
    targets: PackedTargets
    unreadable: Mapping[str, str]
    valid: Tensor | None = None


class Parcels(Dataset):
    """A data set whose items are whole batches, by the list of their indices.

    A user's mistake is returned and not raised: on its way from a worker torch would make many lines of it.
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __getitem__(self, indices: Sequence[int]) -> Parcel | UserError:
        try:
            if isinstance(self.data, MadeInBatches) and indices:
                batch = self.data.batch(indices)
                return Parcel(batch.images, batch.ids, pack(batch.targets), {}, batch.valid)
            samples = [self.data[index] for index in indices]
        except UserError as error:
            return error
        except OSError as error:
            return in_one_line(error)
        readable = [sample for sample in samples if sample is not None]
        images = torch.stack([s.image for s in readable]) if readable else torch.zeros(0, 3, 0, 0, dtype=torch.uint8)
        missing = self._missing(indices, samples)
        targets = pack([s.target for s in readable])
        return Parcel(images, [s.id for s in readable], targets, missing, join_valid(readable))

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


def pack(targets: Sequence[Target]) -> PackedTargets:
    """Targets -> their objects end to end. All have masks or none has, and all have the same attributes."""
    tables = [_fields(target) for target in targets]
    objects = {name: torch.cat([table[name] for table in tables]) for name in (tables[0] if tables else ())}
    return PackedTargets([len(target.labels) for target in targets], [target.label for target in targets], objects)


def unpack(packed: PackedTargets) -> tuple[Target, ...]:
    """The inverse of :func:`pack`."""
    if not packed.counts:
        return ()
    split = [values.split(packed.counts) for values in packed.objects.values()]
    tables = [dict(zip(packed.objects, values, strict=True)) for values in zip(*split, strict=True)]
    return tuple(_target(table, label) for table, label in zip(tables, packed.labels, strict=True))


def _fields(target: Target) -> dict[str, Tensor]:
    masks = {} if target.masks is None else {"masks": target.masks}
    return {"boxes": target.boxes, "labels": target.labels, "crowd": target.crowd, **masks, **target.attributes}


def _target(table: dict[str, Tensor], label: int | None) -> Target:
    boxes, labels, crowd = (table.pop(name) for name in ("boxes", "labels", "crowd"))
    return Target(boxes, labels, table.pop("masks", None), crowd, label, table)

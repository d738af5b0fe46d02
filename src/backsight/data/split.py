"""Train, validation and test: disjoint by id, by the order of a hash and not by position."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backsight.core import UserError
from backsight.data.base import ImageData, Sample, Splits
from backsight.data.source import Source, digest

SHARE = 0.05
"""Of a whole that is divided: the part for validation, and the part for test."""

HELD_OUT_LIMIT = 5000
"""Training images held out for validation, at most."""

PROBED = 20
"""Images read before dividing, so that a part cannot consist of broken files alone."""

PART = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What people call the parts -> what they are."""


class Subset:
    """Some images of a source, in the source's order; name, classes and unreadable files are the source's."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source = source
        self.indices: list[int] = sorted(indices)
        self.ids: list[str] = [source.ids[index] for index in self.indices]
        self.name: str = source.name
        self.classes: Mapping[int, str] = source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample | None:
        return self.source[self.indices[index]]

    @property
    def unreadable(self) -> dict[str, str]:
        """Those of these images that turned out unreadable: id -> reason."""
        own = set(self.ids)
        return {identity: reason for identity, reason in self.source.unreadable.items() if identity in own}

    def record(self, identity: str, reason: str) -> None:
        """Remember that an image cannot be read, and say so once."""
        self.source.record(identity, reason)

    def fingerprint(self) -> str:
        """SHA-256 over the source's fingerprint and the ids of this part."""
        return digest([self.source.fingerprint(), *self.ids])


@dataclass(frozen=True)
class Selection:
    """The images ``indices`` of any data, in that order, under its name."""

    data: ImageData
    indices: Sequence[int]

    @property
    def name(self) -> str:
        """The data's."""
        return self.data.name

    @property
    def classes(self) -> Mapping[int, str]:
        """The data's."""
        return self.data.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample | None:
        return self.data[self.indices[index]]

    def fingerprint(self) -> str:
        """The data's; which images they are, their ids say."""
        return self.data.fingerprint()


def arrange(parts: Mapping[str, Source], seed: int) -> Splits:
    """The parts that a data set comes in -> train, validation and test.

    Three parts stay as they are. Of two, the first is for training, with a twentieth of it (1 to 5,000 images)
    held out for validation, and the second is the test; one alone is divided 90/5/5.

    Args:
        parts: by name, "train", "validation" or "test".
        seed: of the hash that divides.

    Raises:
        UserError: there are too few images, or too few that can be read.
    """
    sources = [parts[name] for name in ("train", "validation", "test") if name in parts]
    if len(sources) == 1:
        return divide(sources[0], seed)
    for source in sources:
        if all(source[index] is None for index in range(min(PROBED, len(source)))):  # one that can be read will do
            readable_first(source, range(len(source)), least=1)
    if len(sources) == 3:
        return Splits(*sources)
    return Splits(*hold_out(sources[0], seed), sources[1])


def divide(source: Source, seed: int) -> Splits:
    """A whole -> 90 % train, 5 % validation, 5 % test, each at least one image.

    Raises:
        UserError: fewer than three images can be read.
    """
    order = readable_first(source, by_hash(source.ids, seed), least=3)
    share = max(1, round(SHARE * len(order)))
    cuts = order[2 * share :], order[:share], order[share : 2 * share]
    return Splits(*(Subset(source, cut) for cut in cuts))


def hold_out(source: Source, seed: int) -> tuple[Subset, Subset]:
    """A training set -> what is left for training, and a twentieth for validation.

    Raises:
        UserError: fewer than two images can be read.
    """
    order = readable_first(source, by_hash(source.ids, seed), least=2)
    share = min(HELD_OUT_LIMIT, max(1, round(SHARE * len(order))))
    return Subset(source, order[share:]), Subset(source, order[:share])


def by_hash(ids: Sequence[str], seed: int) -> list[int]:
    """Indices in the order of SHA-256(seed, id): the same for an image whatever else is in the folder."""

    def place(index: int) -> bytes:
        return hashlib.sha256(f"{seed}:{ids[index]}".encode("utf-8", "surrogateescape")).digest()

    return sorted(range(len(ids)), key=place)


def readable_first(source: Source, order: Sequence[int], *, least: int) -> list[int]:
    """``order``, with those of its first images that cannot be read moved to the end, where training is taken from.

    Raises:
        UserError: fewer than ``least`` of the first images can be read.
    """
    tried = order[:PROBED]
    broken = {index for index in tried if source[index] is None}
    if len(tried) - len(broken) < least:
        if not broken:
            raise UserError(f"{source.name} has {len(order)} image{'s' * (len(order) != 1)}, it needs at least {least}")
        raise UserError(
            f"{source.name}: {len(broken)} of {len(tried)} images tried are unreadable, it needs at least {least} that "
            f"can be read; {next(iter(source.unreadable.values()))}"
        )
    return [index for index in order if index not in broken] + sorted(broken)

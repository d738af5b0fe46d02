"""What every source of pictures does alike: read, fit, name what cannot be read, and tell what it consists of."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from torch.utils.data import get_worker_info

from backsight.core import Pixels, UserError
from backsight.data.base import Sample, Target
from backsight.data.decode import UnreadableImage, read_image
from backsight.data.labels import Labelling, Vocabulary
from backsight.data.resize import fit, fit_target, valid_pixels
from backsight.io import printable

logger: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How to read, whatever the source: for which model, divided by which ``seed``, failing at the first unreadable
    file (``strict``) or skipping it, with the objects' masks or without, in whose labels (``vocabulary``)."""

    pixels: Pixels
    seed: int = 0
    strict: bool = False
    masks: bool = False
    vocabulary: Vocabulary = field(default_factory=dict)


class Source(ABC):
    """A map-style data set (:class:`~backsight.data.base.ImageData`) of pictures that are decoded when asked for.

    A picture that cannot be read gives None, one line in the log, and an entry in ``unreadable`` (id -> reason);
    under ``strict`` it raises :class:`UnreadableImage` instead. ``ids`` are in the order of the indices, the same as
    ``names`` but for names of files that are not UTF-8; without the
    folder ``root``, where all pictures are in one, nothing can go on. Subclasses count the ``classes`` as the data do;
    what is given out is in the labels of the vocabulary that is read for. ``labels`` are those of whole pictures, in
    the same order; none where nothing is known of that, hidden ones negative or None.
    """

    root: Path = Path()

    def __init__(
        self,
        name: str,
        ids: Sequence[str],
        classes: Mapping[int, str] | Labelling,
        reading: Reading,
        labels: Sequence[int | None] = (),
    ) -> None:
        self.name: str = printable(name)
        self.labels: Sequence[int | None] = labels
        self.names: Sequence[str] = ids
        self.ids: Sequence[str] = printable_ids(ids)
        self.reading = reading
        known = isinstance(classes, Labelling)  # a stream has many sources, all of the same classes
        self._labelling = classes if known else Labelling.of(classes, reading.vocabulary)
        self.classes: Mapping[int, str] = self._labelling.classes
        self.unreadable: dict[str, str] = {}
        self._fingerprint = ""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample | None:
        index = range(len(self))[index]
        identity = self.ids[index]
        try:
            image = self.read(index)
            original = (image.shape[-2], image.shape[-1])
            target = self.target(index, original)
        except UnreadableImage as error:
            if not self.root.is_dir():  # no single picture is to blame
                raise UserError(f"{self.root} has vanished: once it is back, --resume goes on") from error
            if self.reading.strict:
                raise UnreadableImage(f"{error} (mend or remove it, or leave out strict)") from error
            self.record(identity, str(error))
            return None
        pixels = self.reading.pixels
        target = fit_target(self._labelling.of_model(target), original, pixels)
        return Sample(fit(image, pixels), identity, target, valid_pixels(original, pixels))

    def record(self, identity: str, reason: str) -> None:
        """Remember that a picture cannot be read, and say so once."""
        if identity not in self.unreadable:
            self.unreadable[identity] = reason
            if get_worker_info() is None:  # a worker's news reach the main process through the loader
                logger.warning("%s; skipped", reason)

    def read(self, index: int) -> Tensor:
        """The whole picture, ``3 rows columns`` uint8.

        Raises:
            UnreadableImage: it cannot be decoded.
        """
        return read_image(self.picture(index), name=printable(self.where(index)))

    def where(self, index: int) -> str:
        """What to call a picture in a message: where its user finds it."""
        return f"{self.ids[index]} of {self.name}"

    @abstractmethod
    def picture(self, index: int) -> Path | bytes:
        """The picture's file, or the content of one."""

    def target(self, index: int, original: tuple[int, int]) -> Target:  # noqa: ARG002
        """What is known of a picture of ``original`` (rows, columns), in the pixels of that picture and the labels of
        the data: the label of the whole, unless a subclass knows more.

        Raises:
            UnreadableImage: it is known of another picture.
        """
        label = self.labels[index] if self.labels else None
        return Target(label=None if label is None or label < 0 else label)

    @abstractmethod
    def facts(self) -> Iterable[str]:
        """What the fingerprint is made of, in a fixed order."""

    def fingerprint(self) -> str:
        """SHA-256 over :meth:`facts`; it is computed once."""
        self._fingerprint = self._fingerprint or digest(self.facts())
        return self._fingerprint


def printable_ids(names: Sequence[str]) -> Sequence[str]:
    """Names that can be written to any file, each once."""
    if all(printable(name) == name for name in names):
        return names
    taken: dict[str, None] = {}
    for name in names:
        shown = unique = printable(name)
        number = 1
        while unique in taken:
            number += 1
            unique = f"{shown} ({number})"
        taken[unique] = None
    return list(taken)


def digest(facts: Iterable[str]) -> str:
    """SHA-256 of some lines, in hexadecimal."""
    total = hashlib.sha256()
    for fact in facts:
        total.update(fact.encode("utf-8", "surrogateescape") + b"\n")
    return total.hexdigest()


def file_facts(files: Iterable[tuple[str, Path]]) -> Iterable[str]:
    """One line for each file by its id, sorted: the id and its size in bytes (-1 where it is missing).

    Sizes instead of contents: a million files are told in seconds, and a picture that was exchanged for
    another hardly ever keeps its size.
    """
    for identity, path in sorted(files):
        try:
            size = path.stat().st_size
        except (OSError, ValueError):  # also a name that no file can have
            size = -1
        yield f"{identity} {size}"

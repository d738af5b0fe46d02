"""Photos with annotated objects: what the formats of COCO, Pascal VOC and YOLO become."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from backsight.core import UserError
from backsight.data.base import Splits, Target
from backsight.data.decode import UnreadableImage, read_image
from backsight.data.fields import MOST, Box, Tally
from backsight.data.folder import ImageFiles, existing
from backsight.data.outlines import Outline, draw_mask, fill_boxes
from backsight.data.source import Reading, Source
from backsight.data.split import PART, arrange

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

UNKNOWN = (0, 0)
"""The size of a photo whose annotations do not say it."""


class Entry(NamedTuple):
    """One object: its box in pixels, its label, whether it is a crowd, and its outline where that is known."""

    box: Box
    label: int
    crowd: bool = False
    outline: Outline | None = None


@dataclass(frozen=True)
class Annotations:
    """What is annotated of one part of some data.

    Attributes:
        sizes: (rows, columns) of every photo by its id, its path below the folder of the data; :data:`UNKNOWN` too.
        entries: the objects by the id of their photo.
        classes: the names of the labels.
        content: a digest of all that was read.
        relative: whether boxes and outlines are in shares of the photo's sides, as YOLO has them.
    """

    sizes: Mapping[str, tuple[int, int]]
    entries: Mapping[str, list[Entry]]
    classes: Mapping[int, str]
    content: str
    relative: bool = False
    tally: Tally = field(default_factory=lambda: Tally(""), compare=False)

    def without(self, ids: Set[str]) -> Annotations:
        """The same, of those photos that are not among ``ids``."""
        return replace(self, sizes={each: size for each, size in self.sizes.items() if each not in ids})


class Photos(ImageFiles):
    """Annotated photos below ``root``. Boxes lie in one tensor and outlines in one byte string, for all photos, so that
    worker processes share them.

    ``masks`` of a target are None where no object of the data has an outline; where some have, the others' boxes are
    filled. Those of photo ``i`` are at ``starts[i]`` to ``starts[i + 1]``.
    """

    def __init__(self, name: str, root: Path, known: Annotations, reading: Reading) -> None:
        super().__init__(name, root, list(known.sizes), reading, classes=known.classes)
        self.known_sizes: list[tuple[int, int]] = list(known.sizes.values())
        self.content: str = known.content
        entries = [self._within(name, size, known) for name, size in known.sizes.items()]
        self.starts: Tensor = torch.tensor([0, *map(len, entries)]).cumsum(0)
        every = [each for own in entries for each in own]
        self.boxes: Tensor = torch.tensor([each.box for each in every], dtype=torch.float32).reshape(-1, 4)
        self.object_labels: Tensor = torch.tensor([each.label for each in every], dtype=torch.int64)
        self.crowd: Tensor = torch.tensor([each.crowd for each in every], dtype=torch.bool)
        self.relative: bool = known.relative
        outlined = sum(each.outline is not None for each in every)
        kept = [json.dumps(each.outline).encode() for each in every] if reading.masks and outlined else []
        self.outlines: bytes = b"".join(kept)
        self.cuts: Tensor | None = torch.tensor([0, *map(len, kept)]).cumsum(0) if kept else None
        if kept and outlined < len(every):
            missing = next(each.box for each in every if each.outline is None)
            known.tally.count("objects without an outline: their boxes stand for it", missing, len(every) - outlined)
        if every and self.crowd.all():
            known.tally.count("objects, which is all, are crowds: none is counted", every[0].box, len(every))
        known.tally.tell(nothing_left=not every)

    @staticmethod
    def _within(name: str, size: tuple[int, int], known: Annotations) -> list[Entry]:
        """The objects of a photo that are at least partly on it, as far as its size is known."""
        rows, columns = (1, 1) if known.relative else size if size != UNKNOWN else (MOST, MOST)
        entries = known.entries.get(name, [])
        inside = [each for each in entries if each.box[0] < columns and each.box[1] < rows and min(each.box[2:]) > 0]
        if len(inside) < len(entries):
            known.tally.count("objects left out: they lie outside of their photo", name, len(entries) - len(inside))
        return inside

    def read(self, index: int) -> Tensor:
        """The photo ``3 rows columns`` uint8 the way round that it was annotated: upright, or as it is stored.

        Raises:
            UnreadableImage: it cannot be decoded, or its size is not the one that was annotated.
        """
        image, annotated = super().read(index), self.known_sizes[index]
        if annotated in (UNKNOWN, image.shape[-2:]):
            return image
        stored = read_image(self.picture(index), upright=False)
        if annotated != stored.shape[-2:]:
            found, wanted = (f"{columns} x {rows}" for rows, columns in (image.shape[-2:], annotated))
            raise UnreadableImage(f"cannot use {self.where(index)}: it is {found}, its annotations are for {wanted}")
        return stored

    def target(self, index: int, original: tuple[int, int]) -> Target:
        """The photo's objects, in pixels.

        Raises:
            UnreadableImage: an outline is of a photo of another size.
        """
        start, end = self.starts[index : index + 2].tolist()
        scale = torch.tensor([original[1], original[0]]).repeat(2) if self.relative else 1
        boxes = self.boxes[start:end] * scale
        masks = None
        if self.cuts is not None:
            cuts = self.cuts[start : end + 1].tolist()
            masks = fill_boxes(boxes, original)
            for place, (a, b) in enumerate(pairwise(cuts)):
                outline = json.loads(self.outlines[a:b])
                if outline is not None:
                    masks[place] = self._drawn(outline, original, index)
        return Target(boxes, self.object_labels[start:end], masks, self.crowd[start:end])

    def _drawn(self, outline: Outline, original: tuple[int, int], index: int) -> Tensor:
        if self.relative and isinstance(outline, list):
            outline = [[side * original[1 - place % 2] for place, side in enumerate(part)] for part in outline]
        mask = draw_mask(outline, original)
        if mask is None:
            raise UnreadableImage(f"cannot use {self.where(index)}: the outline of an object is of another photo")
        return mask

    def facts(self) -> Iterable[str]:
        """The digest of the annotations, and every photo with its size in bytes."""
        yield self.content
        yield from super().facts()


def open_annotated(spec: str, root: Path, parts: Mapping[str, Annotations], reading: Reading) -> Splits:
    """What is annotated of each part -> train, validation and test, see :func:`~backsight.data.split.arrange`.

    A photo in several of them is in the last alone.

    Raises:
        UserError: no photo is left, or too few.
    """
    taken: set[str] = set()
    sources: dict[str, Source] = {}
    for part in ("test", "validation", "train"):
        if part not in parts:
            continue
        known = parts[part]
        both = taken.intersection(known.sizes)
        if both and len(both) < len(known.sizes):
            known = known.without(both)
            known.tally.count(f"photos are in another part too, and left out of {part}", min(both), len(both))
        if len(both) < len(parts[part].sizes) or not sources:
            sources[part] = Photos(spec, root, known, reading)
        else:
            logger.warning("%s: %s has no photos of its own, and is left out", spec, part)
        taken |= set(known.sizes)
    if not taken:
        raise UserError(f"{spec} lists no photos")
    if len(sources) == 1:  # whatever it is called
        sources = {"train": next(iter(sources.values()))}
    return arrange(sources, reading.seed)


def part_of(name: str) -> str:
    """What a split is by its name: ``val2017`` -> ``validation``; empty where that says nothing."""
    return PART.get(name.rstrip("0123456789_-").lower(), "")


def by_folder(root: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """Files by the first folder on their way from ``root`` whose name is that of a split; all under ``all``, if one is
    in none."""
    found: dict[str, list[Path]] = {}
    for path in files:
        folders = path.relative_to(root).parts[:-1]
        found.setdefault(next((name for name in folders if part_of(name)), ""), []).append(path)
    return {"all": [path for paths in found.values() for path in paths]} if "" in found else found


def chosen_parts(spec: str, present: Mapping[str, T], split: str, fallback: str) -> dict[str, T]:
    """The splits to use, by the parts that they are: the one that is named, or those whose names say it.

    Raises:
        UserError: the one that is named is not there.
    """
    if split:
        if split not in present:
            raise UserError(f"{spec}: there is no '{split}', the splits there are: {', '.join(present) or 'none'}")
        return {"train": present[split]}
    return {part_of(name): path for name, path in present.items() if part_of(name)} or {"train": present[fallback]}


def folder_and_split(spec: str, is_data: Callable[[Path], bool] = Path.is_dir) -> tuple[Path, str]:
    """``coco:DIR:SPLIT`` -> the folder, and the split or nothing.

    Raises:
        UserError: there is no such folder.
    """
    rest = spec.partition(":")[2]
    if is_data(Path(rest)) or ":" not in rest:
        return existing(Path(rest)), ""
    root, _, split = rest.rpartition(":")
    return existing(Path(root)), split

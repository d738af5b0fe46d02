"""COCO's layout: ``coco:DIR[:SPLIT]``, photos in ``DIR/SPLIT`` and ``DIR/annotations/instances_SPLIT.json``."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as run_lengths
from torch import Tensor

from backsight.core import UserError
from backsight.data.base import Splits, Target
from backsight.data.decode import UnreadableImage, read_image
from backsight.data.folder import nearest_name
from backsight.data.source import Reading, Source, file_facts
from backsight.data.split import PART, arrange

Annotation = Mapping[str, Any]


class Coco(Source):
    """The photos of one split. Labels are COCO's category ids; an id is the photo's path below the COCO folder.

    Boxes lie in one tensor and outlines in one byte string, for all photos, so that worker processes share them.
    """

    def __init__(self, name: str, root: Path, split: str, reading: Reading) -> None:
        content = _read(root / "annotations" / f"instances_{split}.json")
        instances = _parse(content, root, split)
        images = sorted(instances["images"], key=lambda image: image["file_name"])
        classes = {category["id"]: category["name"] for category in instances.get("categories", [])}
        super().__init__(name, [f"{split}/{image['file_name']}" for image in images], classes, reading)
        self.root = root
        self.content = hashlib.sha256(content).hexdigest()
        self.sizes = [(image.get("height", 0), image.get("width", 0)) for image in images]
        self.objects = Objects(instances.get("annotations", []), [image["id"] for image in images], reading.masks)

    def where(self, index: int) -> str:
        """The photo's path."""
        return str(self.picture(index))

    def picture(self, index: int) -> Path:
        """The photo's file."""
        return self.root / self.ids[index]

    def read(self, index: int) -> Tensor:
        """The photo ``3 rows columns`` uint8 the way round that it was annotated: upright, or as it is stored.

        Raises:
            UnreadableImage: it cannot be decoded, or its size is not the one that was annotated.
        """
        image, annotated = super().read(index), self.sizes[index]
        if annotated in ((0, 0), image.shape[-2:]):
            return image
        stored = read_image(self.picture(index), upright=False)
        if annotated != stored.shape[-2:]:
            found, wanted = (f"{columns} x {rows}" for rows, columns in (image.shape[-2:], annotated))
            raise UnreadableImage(f"cannot use {self.where(index)}: it is {found}, its annotations are for {wanted}")
        return stored

    def target(self, index: int, original: tuple[int, int]) -> Target:
        """The photo's objects."""
        return self.objects.target(index, original)

    def facts(self) -> Iterable[str]:
        """The digest of the annotation file, and every photo with its size in bytes."""
        yield self.content
        yield from file_facts(self.root, self.ids)


class Objects:
    """The annotated objects of all photos, those of photo ``i`` at ``starts[i]`` to ``starts[i + 1]``.

    ``boxes`` ``n 4`` (x0, y0, x1, y1 in pixels), ``labels`` ``n``, ``crowd`` ``n``; outlines as JSON, if wanted.
    """

    def __init__(self, annotations: Sequence[Annotation], images: Sequence[int], masks: bool) -> None:
        places = {image: place for place, image in enumerate(images)}
        own = [annotation for annotation in annotations if annotation.get("image_id") in places]
        own = [annotation for annotation in own if len(annotation.get("bbox", ())) == 4]
        own.sort(key=lambda annotation: places[annotation["image_id"]])
        counts = np.bincount([places[annotation["image_id"]] for annotation in own], minlength=len(images))
        self.starts = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
        boxes = torch.tensor([annotation["bbox"] for annotation in own], dtype=torch.float32).reshape(-1, 4)
        self.boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        self.labels = torch.tensor([annotation["category_id"] for annotation in own], dtype=torch.int64)
        self.crowd = torch.tensor([bool(annotation.get("iscrowd", 0)) for annotation in own], dtype=torch.bool)
        outlines = [json.dumps(annotation.get("segmentation")).encode() for annotation in own] if masks else []
        self.outlines = b"".join(outlines)
        self.cuts = torch.tensor([0, *map(len, outlines)]).cumsum(0) if masks else None

    def target(self, index: int, original: tuple[int, int]) -> Target:
        """The objects of photo ``index``, whose size is ``original`` (rows, columns)."""
        start, end = self.starts[index : index + 2].tolist()
        masks = None
        if self.cuts is not None:
            cuts = self.cuts[start : end + 1].tolist()
            outlines = [json.loads(self.outlines[a:b]) for a, b in pairwise(cuts)]
            drawn = [draw_mask(outline, original) for outline in outlines]
            masks = torch.stack(drawn) if drawn else torch.zeros(0, *original, dtype=torch.bool)
        return Target(self.boxes[start:end], self.labels[start:end], masks, self.crowd[start:end])


def draw_mask(outline: list | dict | None, size: tuple[int, int]) -> Tensor:
    """COCO's ``segmentation`` -> ``H W`` bool, to the bit as COCO's own tools draw it.

    Args:
        outline: polygons (lists of x, y, x, y, ...), or run lengths (``counts`` and ``size``; a list of numbers or
            the compressed string), or nothing.
        size: of the photo, (rows, columns).

    Raises:
        UserError: the run lengths are for a photo of another size.
    """
    if isinstance(outline, dict):
        if tuple(outline["size"]) != tuple(size):
            found, wanted = (f"{columns} x {rows}" for rows, columns in (size, outline["size"]))
            raise UserError(f"COCO's run lengths for {wanted} pixels annotate a photo of {found}: mend the annotations")
        runs = run_lengths.frPyObjects(outline, *size) if isinstance(outline["counts"], list) else outline
    else:
        polygons = [polygon for polygon in outline or () if len(polygon) >= 6]
        if not polygons:
            return torch.zeros(size, dtype=torch.bool)
        runs = run_lengths.merge([run_lengths.frPyObjects([polygon], *size)[0] for polygon in polygons])
    return torch.from_numpy(np.ascontiguousarray(run_lengths.decode(runs))).bool()


def open_coco(spec: str, reading: Reading) -> Splits:
    """``coco:DIR`` or ``coco:DIR:SPLIT`` -> train, validation and test.

    Without SPLIT the newest ``train...`` is for training, with a twentieth of it (5,000 photos at most) held out for
    validation, and the newest ``val...`` is the test. One split alone is divided 90/5/5.

    Raises:
        UserError: the folder, the annotations or the photos are missing, or the annotations list no photos.
    """
    root, split = _parse_spec(spec)
    present = _splits(root)
    if split and split not in present:
        listed = ", ".join(present) or "none"
        raise UserError(f"no annotations/instances_{split}.json in '{root}': the splits there are: {listed}")
    if not split:
        present = [name for name in present if (root / name).is_dir()] or present
    known = {PART[_word(name)]: name for name in present if _word(name) in PART}
    chosen = {"train": split} if split else known or {"train": present[-1]}
    return arrange({part: Coco(spec, root, name, reading) for part, name in chosen.items()}, reading.seed)


def _parse_spec(spec: str) -> tuple[Path, str]:
    rest = spec.partition(":")[2]
    root, split = rest, ""
    if not Path(rest).is_dir() and ":" in rest:
        root, _, split = rest.rpartition(":")
    if not Path(root).is_dir():
        raise UserError(f"there is no folder '{root}'{nearest_name(Path(root))}")
    return Path(root), split


def _splits(root: Path) -> list[str]:
    """The splits that have annotations, the newest last."""
    names = sorted(path.stem.removeprefix("instances_") for path in (root / "annotations").glob("instances_*.json"))
    if not names:
        raise UserError(
            f"'{root}' has no annotations/instances_SPLIT.json, as COCO has: pictures alone are 'folder:{root}'"
        )
    return names


def _word(split: str) -> str:
    """``val2017`` -> ``val``."""
    return split.rstrip("0123456789_-").lower()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read '{path}': {(error.strerror or str(error)).lower()}") from error


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without Python's garbage collector, which looks again and again through objects that are all in use: COCO's
    training annotations load in a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parse(content: bytes, root: Path, split: str) -> dict[str, Any]:
    """The annotation file, checked as far as it is used here."""
    name = f"'{root}/annotations/instances_{split}.json'"
    try:
        with _collector_paused():
            instances = json.loads(content)
    except ValueError as error:
        raise UserError(f"{name} is not whole JSON ({error}): get it again") from error
    images = instances.get("images") if isinstance(instances, dict) else None
    if not images:
        raise UserError(f"{name} lists no images: COCO's files have them under 'images', with 'id' and 'file_name'")
    for entry in chain(images, instances.get("annotations", [])):
        wanted = ("image_id", "category_id") if "image_id" in entry else ("id", "file_name")
        missing = [key for key in wanted if key not in entry]
        if missing:
            raise UserError(f"{name} is not COCO's layout: an entry is without '{missing[0]}' ({str(entry)[:60]}...)")
    if not any((root / split / image["file_name"]).is_file() for image in images):
        raise UserError(f"none of the {len(images)} photos in {name} is in '{root / split}': put them there")
    for key in ("id", "file_name"):
        if len({image[key] for image in images}) < len(images):
            raise UserError(f"{name} has several images of the same '{key}': each needs its own")
    return instances

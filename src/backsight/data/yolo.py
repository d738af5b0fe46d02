"""YOLO's format, ``yolo:DIR[:SPLIT]``: a text file for each photo, boxes in shares of its sides, and ``data.yaml``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backsight.data.base import Splits
from backsight.data.fields import MOST, UNREADABLE, Field, Tally, identity, number, text, with_area
from backsight.data.folder import existing, find_images
from backsight.data.objects import Annotations, Entry, by_folder, chosen_parts, folder_and_split, open_annotated
from backsight.data.outlines import bounds
from backsight.data.source import Reading
from backsight.io import read_record
from backsight.validation import Record

SLACK = 0.01
"""How far a share may lie outside 0 to 1: roundings, and boxes at the border."""

LINE = "CLASS X Y WIDTH HEIGHT or CLASS X Y X Y ..., in shares of the photo's sides, with an area"

NAME = {"label": Field(identity, required=True), "name": Field(text)}


@dataclass(frozen=True)
class DataFile(Record):
    """What of ``data.yaml`` is used: folders of photos, or lists of them, for each part; and the classes' names."""

    path: str | None = None
    train: tuple[str, ...] | None = None
    val: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None
    names: Mapping[Any, Any] | tuple[Any, ...] | None = None


def open_yolo(spec: str, reading: Reading) -> Splits:
    """``yolo:DIR``, ``yolo:DATA.yaml`` or either with ``:SPLIT`` -> train, validation and test.

    Of ``data.yaml``, ``path``, ``train``, ``val``, ``test`` and ``names`` are read. Without one, folders called
    ``train``, ``valid`` or ``test`` are the splits, and ``classes.txt`` has the names. The labels of a photo are in
    ``labels`` where it is in ``images``, or beside it: ``CLASS X Y WIDTH HEIGHT``, or ``CLASS`` and a polygon.

    Raises:
        UserError: the folder or the photos are missing, or ``data.yaml`` cannot be read.
    """
    place, split = folder_and_split(spec, lambda path: path.exists())
    path = (
        place if place.is_file() else next(iter(sorted(place.glob("data.y*ml")) + sorted(place.glob("*.y*ml"))), None)
    )
    root = place.parent if place.is_file() else place
    known = DataFile() if path is None else read_record(path, DataFile, "see 'yolo:' in the documentation of data")
    tally = Tally(spec)
    present = {
        name: [photo for each in getattr(known, name) for photo in _photos(root, known.path or "", each, tally)]
        for name in ("train", "val", "test")
        if getattr(known, name)
    } or by_folder(root, [root / name for name in find_images(root)])
    chosen = chosen_parts(spec, present, split, next(iter(present)))
    classes = _classes(known.names, root, tally)
    parts = {part: _read(root, photos, classes, tally) for part, photos in chosen.items()}
    return open_annotated(spec, root, parts, reading)


def _photos(root: Path, path: str, given: str, tally: Tally) -> list[Path]:
    """The photos in a folder, or in a list, that ``data.yaml`` names."""
    tried = [base / each for each in (given, given.removeprefix("../")) for base in (root / path, root)]
    place = existing(next((each for each in tried if each.exists()), tried[1]))
    if place.is_dir():
        return [place / name for name in find_images(place)]
    lines = [line.strip() for line in place.read_text(encoding="utf-8", errors="replace").splitlines()]
    found = []
    for line in filter(None, lines):
        photo = next((base / line for base in (place.parent, root / path, root) if (base / line).is_file()), None)
        if photo is None:
            tally.count(f"photos of {place.name} left out: they are not there", line)
        else:
            found.append(photo)
    return found


def _classes(names: Sequence[Any] | Mapping[Any, Any] | None, root: Path, tally: Tally) -> dict[int, str]:
    if names is None:
        path = next(iter(sorted(root.rglob("classes.txt")) + sorted(root.rglob("*.names"))), None)
        names = path.read_text(encoding="utf-8", errors="replace").splitlines() if path else []
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
    listed = [{"label": label, "name": name} for label, name in pairs]
    return {
        label: str(label) if name is None else name
        for _, (label, name) in tally.entries(listed, NAME, "names of classes")
        if isinstance(label, int)
    }


def _read(root: Path, photos: Sequence[Path], classes: Mapping[int, str], tally: Tally) -> Annotations:
    entries, total = {}, hashlib.sha256(repr(sorted(classes.items())).encode())
    for photo in photos:
        name = photo.relative_to(root).as_posix() if photo.is_relative_to(root) else photo.as_posix()
        path = _labels_of(photo)
        content = path.read_bytes() if path else b""
        total.update(content)
        if path is None:
            tally.count("photos without a file of labels: they show nothing", name)
        entries[name] = []
        for line in content.decode(errors="replace").splitlines():
            try:
                entries[name] += [_entry(line)] if line.strip() else []
            except UNREADABLE:
                tally.count(f"lines left out: they have to be {LINE}", f"{name}: {line}")
    sizes = dict.fromkeys(sorted(entries), (0, 0))
    return Annotations(sizes, entries, classes, total.hexdigest(), relative=True, tally=tally)


def _labels_of(photo: Path) -> Path | None:
    """The file of labels of a photo: in ``labels`` where this is in ``images``, or beside it."""
    parts = list(photo.parts)
    tried = [photo]
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        tried.insert(0, Path(*parts[:last], "labels", *parts[last + 1 :]))
    return next((path for path in (each.with_suffix(".txt") for each in tried) if path.is_file()), None)


def _entry(line: str) -> Entry:
    label, *shares = map(number, line.split())
    if label != int(label) or not 0 <= label <= MOST or not all(-SLACK <= share <= 1 + SLACK for share in shares):
        raise ValueError(line)
    if len(shares) in (4, 5):  # the fifth is a detector's confidence
        x, y, width, height = shares[:4]
        box = with_area((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        return Entry(box, int(label))
    if len(shares) < 6 or len(shares) % 2:
        raise ValueError(line)
    return Entry(bounds([shares]), int(label), outline=[shares])

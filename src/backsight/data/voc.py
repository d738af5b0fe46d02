"""Pascal VOC's format, ``voc:DIR[:SPLIT]``: an XML file for each photo."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from backsight.core import UserError
from backsight.data.base import Splits
from backsight.data.fields import Box, Field, Tally, flag, length, number, text, with_area
from backsight.data.folder import SUFFIXES
from backsight.data.objects import Annotations, Entry, by_folder, chosen_parts, folder_and_split, open_annotated
from backsight.data.source import Reading


def corners(value: Any) -> Box:
    """VOC's box, whose pixels are counted from 1, both ends included -> x0, y0, x1, y1."""
    x0, y0, x1, y1 = (number(value[name]) for name in ("xmin", "ymin", "xmax", "ymax"))
    return with_area((max(0.0, x0 - 1), max(0.0, y0 - 1), x1, y1))


OBJECT = {
    "name": Field(text, required=True),
    "bndbox": Field(corners, required=True),
    "difficult": Field(flag, False),
}
SIZE = {"height": Field(length, 0), "width": Field(length, 0)}
"""What the elements of VOC's files may hold."""


def open_voc(spec: str, reading: Reading) -> Splits:
    """``voc:DIR`` or ``voc:DIR:SPLIT`` -> train, validation and test.

    DIR is VOC's own (``Annotations``, ``JPEGImages``, and lists of the splits in ``ImageSets/Main``), or a folder that
    has such ones in it, or one with an XML file beside each photo. Without lists, folders called ``train``, ``valid``
    or ``test`` are the splits. ``difficult`` objects are crowds, which are not counted. Labels number the names of the
    classes in their order.

    Raises:
        UserError: the folder, the annotations or the photos are missing.
    """
    root, split = folder_and_split(spec)
    files = sorted(root.rglob("*.xml"))
    if not files:
        raise UserError(f"'{root}' has no .xml files, as VOC has: pictures alone are 'folder:{root}'")
    present = _listed(root) or by_folder(root, files)
    chosen = chosen_parts(spec, present, split, next(iter(present)))
    tally = Tally(spec)
    found = {part: list(_photos(root, chosen[part], tally)) for part in chosen}
    names = sorted({name for photos in found.values() for *_, objects in photos for name, _ in objects})
    labels = {name: label for label, name in enumerate(names)}
    parts = {}
    for part, photos in found.items():
        sizes = {identity: size for identity, size, *_ in photos}
        entries = {
            identity: [each._replace(label=labels[name]) for name, each in objects]
            for identity, _, _, objects in photos
        }
        content = hashlib.sha256(b"".join(content for _, _, content, _ in photos)).hexdigest()
        parts[part] = Annotations(sizes, entries, dict(enumerate(names)), content, tally=tally)
    return open_annotated(spec, root, parts, reading)


def _listed(root: Path) -> dict[str, list[Path]]:
    """The annotations that VOC's lists name, by the list: ``train``, ``val``, ``test``; ``trainval`` if no other."""
    lists: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("ImageSets/Main/*.txt")):
        if path.stem in ("train", "val", "test", "trainval"):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            home = path.parent.parent.parent / "Annotations"
            lists.setdefault(path.stem, []).extend(home / f"{line.split()[0]}.xml" for line in lines if line.strip())
    return {name: lists[name] for name in lists if name != "trainval" or len(lists) == 1}


def _photos(
    root: Path, files: Sequence[Path], tally: Tally
) -> Iterator[tuple[str, tuple[int, int], bytes, list[tuple[str, Entry]]]]:
    """The photo of every annotation file: its path below ``root``, its size, the file, and its objects by name."""
    pictures = cache(_pictures)
    for path in files:
        homes = (path.parent.parent / "JPEGImages", path.parent, path.parent.parent / "images", root)
        photo = next((pictures(home)[path.stem] for home in homes if path.stem in pictures(home)), None)
        if photo is None:
            tally.count("annotated photos left out: they are not there", path.stem)
            continue
        content, identity = b"", photo.relative_to(root).as_posix()
        size, objects = (0, 0), []
        if path.is_file():
            content = path.read_bytes()
            size, objects = _read(content, path, tally)
        else:
            tally.count("photos without an .xml file: they show nothing", identity)
        yield identity, size, content, objects


def _pictures(folder: Path) -> dict[str, Path]:
    """The pictures in a folder by their names without suffix."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.stem: path for path in there if path.suffix.lower() in SUFFIXES}


def _read(content: bytes, path: Path, tally: Tally) -> tuple[tuple[int, int], list[tuple[str, Entry]]]:
    try:
        whole = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        tally.count(f"files that are not whole XML, whose photos show nothing ({error})", path.name)
        return (0, 0), []
    sizes = [_mapping(each, 1) for each in whole.findall("size")[:1]]
    ((_, (rows, columns)),) = tally.entries(sizes or [{}], SIZE, "sizes")
    listed = [_mapping(each, 2) for each in whole.findall("object")]
    objects = [
        (name, Entry(box, 0, crowd))
        for _, (name, box, crowd) in tally.entries(listed, OBJECT, f"objects of {path.name}")
    ]
    return (rows, columns) if rows and columns else (0, 0), objects


def _mapping(element: ElementTree.Element, depth: int) -> Mapping[str, Any]:
    """The texts in an element by their tags, and those below it."""
    return {each.tag: _mapping(each, depth - 1) if len(each) and depth > 1 else each.text for each in element}

"""COCO's format, ``coco:DIR[:SPLIT]`` or ``coco:IMAGES:JSON``, in the layouts that COCO and its tools write."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from backsight.core import UserError
from backsight.data.base import Splits
from backsight.data.fields import UNREADABLE, Field, Tally, corner_and_size, flag, identity, length, numbered, text
from backsight.data.folder import existing
from backsight.data.objects import Annotations, Entry, chosen_parts, folder_and_split, open_annotated
from backsight.data.outlines import bounds, read_outline
from backsight.data.source import Reading

IMAGE = {
    "id": Field(identity, required=True),
    "file_name": Field(text, required=True),
    "height": Field(length, 0),
    "width": Field(length, 0),
}
CATEGORY = {"id": Field(identity, required=True), "name": Field(text)}
ANNOTATION = {
    "image_id": Field(identity, required=True),
    "category_id": Field(identity, required=True),
    "bbox": Field(corner_and_size),
    "iscrowd": Field(flag, False),
}
OUTLINE = {"segmentation": Field(read_outline)}
"""What the fields of COCO's entries may hold."""

LAYOUTS = ("annotations/instances_*.json", "*/_annotations.coco.json", "annotations/*.json", "*.json")
"""Where annotations are: COCO's own, Roboflow's, CVAT's and others', Label Studio's. The first that is there counts."""

OTHER_KINDS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
"""How COCO calls annotations that are not of objects' boxes."""

PROBED, DEEPEST = 50, 8
"""Photos that are looked for, and folders in their names that are left out, to find out where they are."""


def open_coco(spec: str, reading: Reading) -> Splits:
    """``coco:DIR``, ``coco:DIR:SPLIT`` or ``coco:IMAGES:JSON`` -> train, validation and test.

    Without SPLIT the newest ``train...`` is for training, with a twentieth of it (5,000 photos at most) held out for
    validation, and the newest ``val...`` is the test. One split alone is divided 90/5/5. The photos of a split are
    where most of those that it lists are found: in ``DIR/SPLIT``, ``DIR/images/SPLIT``, beside the annotations, in
    ``DIR/images``, in ``DIR``, or where their names, if these are paths, say.

    Raises:
        UserError: the folder, the annotations or the photos are missing, or the annotations list no photos.
    """
    rest = spec.partition(":")[2]
    if rest.endswith(".json"):
        return _open_file(spec, rest, reading)
    root, split = folder_and_split(spec)
    present = _splits(root)
    homes = {
        name: [root / name, root / "images" / name, path.parent, root / "images", root]
        for name, path in present.items()
    }
    if not split:
        present = {name: path for name, path in present.items() if homes[name][0].is_dir()} or present
    names = {path: name for name, path in present.items()}
    chosen = chosen_parts(spec, present, split, next(reversed(present)))
    parts = {part: read_coco(path, root, homes[names[path]], masks=reading.masks) for part, path in chosen.items()}
    return open_annotated(spec, root, parts, reading)


def _open_file(spec: str, rest: str, reading: Reading) -> Splits:
    """``coco:IMAGES:JSON``, whose second colon may be any."""
    cuts = [place for place, letter in enumerate(rest) if letter == ":"]
    named = [(Path(rest[:cut]), Path(rest[cut + 1 :])) for cut in cuts]
    if not named:
        path = existing(Path(rest))
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        raise UserError(
            f"'{rest}' is a file: 'coco:' takes the folder above it, 'coco:{root}', or 'coco:IMAGES:{rest}'"
        )
    images, path = next((each for each in named if each[0].is_dir()), named[-1])
    known = read_coco(existing(path), existing(images), [images], masks=reading.masks)
    return open_annotated(spec, images, {"train": known}, reading)


def _splits(root: Path) -> dict[str, Path]:
    """The splits that have annotations, the newest last, and the files of these."""
    for layout in LAYOUTS:
        paths = [path for path in sorted(root.glob(layout)) if not path.name.startswith(OTHER_KINDS)]
        names = [path.parent.name if "/_" in layout else path.stem.removeprefix("instances_") for path in paths]
        if paths:
            return dict(zip(names, paths, strict=True))
    raise UserError(
        f"'{root}' has no annotations/instances_SPLIT.json, as COCO has, and no other .json file of annotations: "
        f"pictures alone are 'folder:{root}'"
    )


# ---- the file of annotations


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


@_collector_paused()
def read_coco(path: Path, root: Path, homes: Sequence[Path], *, masks: bool = False) -> Annotations:
    """What an annotation file says of photos in one of the ``homes``; ids are paths below ``root``.

    Entries that cannot be read are left out, and counted in one line for each kind.

    Raises:
        UserError: it is no file of COCO's format, lists no image, or one twice, or none of its photos is there.
    """
    content = path.read_bytes()
    whole = _parse(content, path)
    tally = Tally(str(path))
    images = [values for _, values in tally.entries(whole["images"], IMAGE, "images")]
    if not images:
        tally.tell()
        raise UserError(f"'{path}' lists no images: COCO's files have them under 'images', with 'id' and 'file_name'")
    ids = dict(zip((each[0] for each in images), _ids([each[1] for each in images], root, homes, path), strict=False))
    for name, known in (("id", ids), ("file_name", set(ids.values()))):
        if len(known) < len(images):
            raise UserError(f"'{path}' has several images of the same '{name}': each needs its own")
    sizes = {ids[key]: (rows, columns) if rows and columns else (0, 0) for key, _, rows, columns in images}
    named = {key: name for _, (key, name) in tally.entries(whole.get("categories"), CATEGORY, "categories")}
    objects = list(_objects(whole.get("annotations"), ids, named, tally, masks))
    labels = numbered([*named, *(category for _, category, _ in objects)])
    entries: dict[str, list[Entry]] = {}
    for photo, category, entry in objects:
        entries.setdefault(photo, []).append(entry._replace(label=labels[category]))
    classes = {labels[key]: name if name is not None else str(key) for key, name in named.items()}
    ordered = dict(sorted(sizes.items()))
    return Annotations(ordered, entries, classes, hashlib.sha256(content).hexdigest(), tally=tally)


def _objects(
    listed: Any, ids: Mapping[int | str, str], named: Mapping[int | str, str | None], tally: Tally, masks: bool
) -> Iterator[tuple[str, int | str, Entry]]:
    """Every annotation that can be used: its photo, its category, and its entry, whose label is to be filled in."""
    by_name = {name: key for key, name in named.items()}
    for given, (image, category, box, crowd) in tally.entries(listed, ANNOTATION, "annotations"):
        if image not in ids:
            tally.count("of the annotations left out: no image is listed with their 'image_id'", image)
            continue
        if category not in named and category in by_name:
            category = by_name[category]
        if named and category not in named:
            tally.count("annotations of a category that is not listed", category)
        outline = None
        if masks or box is None:
            ((_, (outline,)),) = tally.entries([given], OUTLINE, "annotations")
        try:
            box = box or bounds(outline or [])
        except UNREADABLE:
            tally.count("of the annotations left out: neither box nor outline has an area", given)
            continue
        yield ids[image], category, Entry(box, 0, crowd, outline if masks else None)


def _ids(names: Sequence[str], root: Path, homes: Sequence[Path], path: Path) -> list[str]:
    """The photos' paths below ``root``, or absolute ones: in that one of ``homes`` where most are found, without
    as many of the folders in their names.

    Raises:
        UserError: not one is found.
    """
    parts = [PurePosixPath(name.replace("\\", "/")).parts for name in names]
    some = sorted(parts)[:: max(1, len(parts) // PROBED)]
    deepest = min(DEEPEST, max(map(len, parts)))

    def found(home: Path, cut: int) -> int:
        return sum(os.path.isfile(home.joinpath(*_cut(each, cut))) for each in some)  # noqa: PTH113  (no error for odd names)

    home, cut = max(product(homes, range(deepest)), key=lambda way: found(*way))
    if not found(home, cut):
        listed = sorted(names)[0]
        raise UserError(
            f"none of the {len(names)} photos in '{path}' is in '{homes[0]}' (the first is '{listed}'): put them there"
        )
    where, whole = f"{root}/", f"{root.resolve()}/"
    return [os.path.join(home, *_cut(each, cut)).removeprefix(where).removeprefix(whole) for each in parts]  # noqa: PTH118  (of many, quick)


def _cut(parts: tuple[str, ...], cut: int) -> tuple[str, ...]:
    return parts[min(cut, len(parts) - 1) :]


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not whole JSON ({error}): get it again") from error
    if not isinstance(found, dict) or not isinstance(found.get("images"), list) or not found["images"]:
        raise UserError(f"'{path}' lists no images: COCO's files have them under 'images', with 'id' and 'file_name'")
    return found

"""A folder of pictures: ``folder:DIR``."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from backsight.core import Pixels, UserError
from backsight.data.base import Batch, Splits, collate
from backsight.data.decode import EXTRA, UnreadableImage, missing_decoders
from backsight.data.source import Reading, Source, file_facts, printable_ids
from backsight.data.split import PART, arrange
from backsight.io import printable

logger: logging.Logger = logging.getLogger(__name__)

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga"),
}
"""What the name of a picture ends in; upper case will do as well."""

CONVERT = "convert them to .png or .jpg"
NOT_READ = dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".svg", ".jxl"), CONVERT)
"""What the names of other pictures end in, which nobody reads here, and what to do."""


class ImageFiles(Source):
    """Picture files below ``root``, whose ids are their paths from there."""

    def __init__(
        self,
        name: str,
        root: Path,
        ids: Sequence[str],
        reading: Reading,
        labels: Sequence[int | None] = (),
        classes: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(name, ids, classes or {}, reading, labels)
        self.root = root
        self.names_of_labels: Mapping[int, str] = classes or {}

    def where(self, index: int) -> str:
        """The picture's path."""
        return str(self.picture(index))

    def picture(self, index: int) -> Path:
        """The picture's file."""
        return self.root / self.names[index]

    def facts(self) -> Iterable[str]:
        """Every id with its file's size and its label."""
        yield from file_facts(zip(self.ids, map(self.root.joinpath, self.names), strict=True))
        labelled = sorted(zip(self.names, self.labels, strict=True)) if self.labels else []
        yield from (f"{name} {self.names_of_labels[label]}" for name, label in labelled if label is not None)


def open_folder(spec: str, reading: Reading) -> Splits:
    """``folder:DIR`` -> train, validation and test.

    Subfolders ``train``, ``val`` (``validation``) and ``test`` are those parts; two of them, or one folder of
    pictures in any arrangement, are divided as in :func:`~backsight.data.split.arrange`. The folders in a part
    are classes where there are at least two.

    Raises:
        UserError: the folder is missing or empty, or has no pictures, or fewer than three that can be read.
    """
    root = Path(spec.partition(":")[2])
    ids = find_images(root)
    folders = {identity.partition("/")[0] for identity in ids if "/" in identity}
    given = {folder: PART[folder.lower()] for folder in folders if folder.lower() in PART}
    whole = not given or given.keys() != folders
    depth = 0 if whole else 1
    labels, classes = _labels(ids, depth)

    def files(names: Sequence[str]) -> ImageFiles:
        return ImageFiles(spec, root, names, reading, [labels.get(name) for name in names], classes)

    if whole:
        return arrange({"train": files(ids)}, reading.seed)
    parts: dict[str, list[str]] = {}
    for identity in ids:
        folder = identity.partition("/")[0]
        if folder in given:
            parts.setdefault(given[folder], []).append(identity)
    return arrange({part: files(names) for part, names in parts.items()}, reading.seed)


def find_images(root: Path) -> list[str]:
    """The paths below ``root`` of all pictures, sorted; hidden files and folders are left out.

    Raises:
        UserError: the folder is missing or empty, or has no pictures.
    """
    check_folder(root)
    files = sorted(_walk(root, set()))
    by_suffix: dict[str, list[str]] = {}
    for file in files:
        by_suffix.setdefault(Path(file).suffix.lower(), []).append(file)
    left_out = NOT_READ | missing_decoders()
    for suffix, fix in left_out.items():
        if suffix in by_suffix:
            logger.warning(
                "%d %s files in %s are left out: %s", len(by_suffix[suffix]), suffix, printable(str(root)), fix
            )
    readable = SUFFIXES.union(EXTRA).difference(left_out)
    images = [file for file in files if Path(file).suffix.lower() in readable]
    if images:
        return images
    if not files:
        raise UserError(f"folder '{root}' is empty: put pictures (.jpg, .png, .webp, ...) into it")
    if fixes := {fix for suffix, fix in left_out.items() if suffix in by_suffix}:
        raise UserError(f"folder '{root}' has only pictures that cannot be read here: {'; '.join(sorted(fixes))}")
    if any(file.endswith(".parquet") for file in files):
        raise UserError(f"folder '{root}' has no pictures but parquet files: 'parquet:{root}' would read them")
    raise UserError(
        f"folder '{root}' has no pictures among its {len(files)} files (the first is '{files[0]}'): "
        "their names end in .jpg, .png, .webp, ..."
    )


def find_pictures(paths: Sequence[str | Path]) -> list[str]:
    """The files that ``paths`` name, and the pictures in the folders among them.

    Raises:
        UserError: no path is named, one does not exist, or a folder has no pictures.
    """
    if not paths:
        raise UserError("no picture to show: none was given, name picture files or folders of them")
    files: list[str] = []
    for path in map(Path, paths):
        files += [str(path / image) for image in find_images(path)] if path.is_dir() else [str(existing(path))]
    return files


def load_images(paths: str | Path | Sequence[str | Path], pixels: Pixels, *, strict: bool = False) -> Batch:
    """One picture or some, and all those in some folders, as one batch ``B 3 H W`` in [0, 1]; the ids are their paths.

    A picture that cannot be read is named in the log and left out.

    Raises:
        UserError: a path does not exist, or there is no picture that can be read; under ``strict`` any that cannot.
    """
    files = find_pictures([paths] if isinstance(paths, str | Path) else paths)
    alone = len(files) == 1  # without it there is nothing to go on with, so that no notice of skipping comes before
    source = ImageFiles("the given pictures", Path(), files, Reading(pixels, strict=strict or alone))
    try:
        samples = [source[index] for index in range(len(source))]
    except UnreadableImage as error:
        if not alone:
            raise
        raise UserError(f"no picture to show: {error.__cause__}") from error
    if all(sample is None for sample in samples):
        reason = next(iter(source.unreadable.values()), "none was given")
        raise UserError(f"no picture to show: {reason}")
    return collate(samples)


def nearest_name(path: Path) -> str:
    """A hint for a path that does not exist: what stands beside it and is called nearly the same, or where it was
    looked for."""
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, [name for name in beside if name != path.name], n=1)
    return f"; is it '{path.parent / close[0]}'?" if close else f"; it was looked for in '{path.parent.absolute()}'"


def _labels(ids: Sequence[str], depth: int) -> tuple[dict[str, int], dict[int, str]]:
    """The folder at ``depth`` of every id as its label, and the names of the labels; none if it is always the same."""
    folders = {identity: identity.split("/")[depth] for identity in ids if identity.count("/") > depth}
    names = sorted(set(folders.values()))
    if len(names) < 2:
        return {}, {}
    label = {name: index for index, name in enumerate(names)}
    return {identity: label[folder] for identity, folder in folders.items()}, dict(enumerate(printable_ids(names)))


def check_folder(root: Path) -> None:
    """Refuse what is no folder.

    Raises:
        UserError: it does not exist, or is a file.
    """
    if root.is_file():
        raise UserError(f"'{root}' is a file: 'folder:' takes the folder that it is in, '{root.parent}'")
    existing(root)


def existing(path: Path) -> Path:
    """The path itself.

    Raises:
        UserError: nothing is there; the message names what is nearest.
    """
    if not os.path.exists(path):  # noqa: PTH110  (no error for names that no file can have)
        if path.is_symlink():
            raise UserError(f"'{path}' is a link to '{path.readlink()}', which is not there")
        raise UserError(f"there is no '{path}'{nearest_name(path)}")
    return path


def _walk(root: Path, seen: set[Path], below: str = "") -> Iterator[str]:
    """Paths of all files from ``root``; folders that are links are followed, but none is entered twice."""
    real = root.resolve()
    if real in seen:
        return
    seen.add(real)
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), seen, f"{below}{entry.name}/")
            else:
                yield below + entry.name

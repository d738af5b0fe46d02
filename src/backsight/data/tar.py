"""Tar files as webdataset has them, ``wds:PATTERN``: every member is found once, and read by its place from then on.

What belongs together has the same name up to the first dot of its last part: ``NAME.jpg``, or any other picture, and
``NAME.cls``, its class as a number, or ``NAME.json`` with it, if there is one. Local paths, and addresses that fsspec
knows (``s3://...``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from backsight.core import UserError
from backsight.data.base import Splits
from backsight.data.decode import UnreadableImage
from backsight.data.folder import SUFFIXES, nearest_name
from backsight.data.source import Reading, Source
from backsight.data.streams import HELD_OUT, Encoded, hold_out, part_of
from backsight.io import write_text

logger: logging.Logger = logging.getLogger(__name__)

DAMAGED = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError)
"""What the readers of archives say of one that is cut short or damaged, each in its own way."""

COMPRESSED = (".gz", ".tgz", ".xz", ".txz", ".bz2", ".tbz2")
"""These can be read from the front alone: they are streams."""

Parts = dict[str, tuple[tarfile.TarInfo, bytes]]
"""The members of a sample by what follows its key, and their contents."""

THREADS = 16
"""Files whose members are sought at the same time."""

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
"""``{000..127}``: the numbers between, written as wide; ``{train,val}``: each of them."""

MOST_FILES = 1_000_000
"""Files that a pattern may name: the largest data sets have some hundred thousand."""

MOST_PICTURES = 16
"""Pictures of one sample: more are samples whose names have dots in them."""


@dataclass(frozen=True)
class Place:
    """Where a picture is: in file number ``shard``, from byte ``start`` on, ``size`` bytes; its class if it has one."""

    shard: int
    start: int
    size: int
    label: int | None


class TarPictures(Source):
    """Pictures in tar files, by their places; an id is the file's name and the member's."""

    def __init__(
        self, name: str, files: TarFiles, ids: Sequence[str], places: Sequence[Place], reading: Reading
    ) -> None:
        super().__init__(name, ids, {}, reading, [place.label for place in places])
        self.files: TarFiles = files
        self.places: Sequence[Place] = places

    def picture(self, index: int) -> bytes:
        """The content of its file.

        Raises:
            UnreadableImage: the tar file is gone, or another.
        """
        place = self.places[index]
        try:
            return self.files.system.cat_file(self.files.paths[place.shard], place.start, place.start + place.size)
        except OSError as error:
            raise UnreadableImage(f"cannot read {self.where(index)}: {error}") from error

    def facts(self) -> Iterable[str]:
        """Every tar file with its size, and the ids."""
        yield from self.files.facts()
        yield from self.ids


def open_tar(spec: str, reading: Reading) -> Splits:
    """``wds:PATTERN`` -> train, validation and test: a hash of a picture's id decides, and of the latter two there are
    256 at the most. Compressed files are a stream (:func:`~backsight.data.streams.hold_out`).

    Raises:
        UserError: there is no such file, or not a picture for each part.
    """
    files = TarFiles(spec.partition(":")[2])
    if any(path.endswith(COMPRESSED) for path in files.paths):
        return hold_out(spec, files, reading)
    found: dict[str, tuple[list[str], list[Place]]] = {part: ([], []) for part in ("train", "validation", "test")}
    for identity, place in files.index():
        part = part_of(identity, reading.seed)
        ids, places = found[part]
        if part == "train" or len(ids) < HELD_OUT:
            ids.append(identity)
            places.append(place)
    if not all(ids for ids, _ in found.values()):
        raise UserError(
            f"{spec} has too few pictures: none is for {next(p for p, (ids, _) in found.items() if not ids)}"
        )
    return Splits(**{part: TarPictures(spec, files, *own, reading) for part, own in found.items()})


class TarFiles:
    """The ``.tar`` files that a pattern names, with braces and ``*`` expanded."""

    classes: Mapping[int, str] = {}

    def __init__(self, pattern: str) -> None:
        from fsspec.core import url_to_fs

        self.system: Any
        try:
            self.system, root = url_to_fs(pattern)
        except (ImportError, ValueError) as error:
            raise UserError(f"wds:{pattern}: {' '.join(str(error).split())}") from error
        names = list(islice(expand(root), MOST_FILES + 1))
        if len(names) > MOST_FILES:
            raise UserError(f"wds:{pattern} names more than {MOST_FILES:,} files: give the range that there is")
        found = {each: sorted(self._matching(each)) for each in names}
        self.paths: list[str] = [path for paths in found.values() for path in paths]
        if not self.paths:
            path = Path(pattern)
            raise UserError(f"no file is called '{pattern}'{nearest_name(path)}: wds: takes DIR/NAME-{{000..127}}.tar")
        if missing := [each for each, paths in found.items() if not paths]:
            logger.warning("wds:%s: %d of %d files are not there, as %s", pattern, len(missing), len(found), missing[0])

    def _matching(self, path: str) -> list[str]:
        if any(each in path for each in "*?["):
            return [str(found) for found in self.system.glob(path)]
        return [path] if self.system.exists(path) else []

    def __len__(self) -> int:
        return len(self.paths)

    def facts(self) -> Sequence[str]:
        """Every file with its size."""
        return [f"{Path(path).name} {self.system.size(path)}" for path in self.paths]

    # ---- by place

    def index(self) -> Iterator[tuple[str, Place]]:
        """Every picture of every file with its place; found once, and kept in :func:`cache_folder`."""
        with ThreadPoolExecutor(THREADS) as threads:
            for shard, members in enumerate(threads.map(self._members, self.paths)):
                for key, start, size, label in members:
                    yield f"{Path(self.paths[shard]).name}/{key}", Place(shard, start, size, label)

    def _members(self, path: str) -> list[list[Any]]:
        facts = self.system.info(path)
        known = [self.system.unstrip_protocol(path), facts["size"], str(facts.get("mtime")), str(facts.get("ETag"))]
        kept = cache_folder() / "tar" / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]}.json"
        if kept.is_file():
            return json.loads(kept.read_text(encoding="utf-8"))
        found = [
            [key, member.offset_data, member.size, _label(parts)]
            for key, parts in self._groups(path, "r:", {"cls", "json"})
            for member, _ in _pictures(parts)
        ]
        write_text(kept, json.dumps(found))
        return found

    # ---- from the front

    def read(self, index: int, start: int = 0) -> Iterator[Encoded]:
        """The pictures of one file from number ``start`` to its end; it is unpacked from its beginning all the same."""
        return islice(self._read(self.paths[index]), start, None)

    def _read(self, path: str) -> Iterator[Encoded]:
        for key, parts in self._groups(path, "r:*", {"cls", "json", *(suffix[1:] for suffix in SUFFIXES)}):
            for _, content in _pictures(parts):
                yield Encoded(f"{Path(path).name}/{key}", content, _label(parts))

    def _groups(self, path: str, mode: Any, wanted: set[str]) -> Iterator[tuple[str, Parts]]:
        """Members that follow each other under the same key, by what follows it, those of the kinds that are ``wanted``
        with their content. A file that is cut short or damaged is named, and read up to there."""
        key, parts = "", Parts()
        try:
            with self.system.open(path, "rb") as file, tarfile.open(fileobj=file, mode=mode) as archive:
                for member in archive:
                    if not member.isfile():
                        continue
                    folder, slash, name = member.name.rpartition("/")
                    stem, _, kind = name.partition(".")
                    if f"{folder}{slash}{stem}" != key:
                        yield key, parts
                        key, parts = f"{folder}{slash}{stem}", Parts()
                    kind = kind.lower()
                    content = archive.extractfile(member) if kind.rpartition(".")[2] in wanted else None
                    parts[kind] = member, b"" if content is None else content.read()
                    if len(parts) > MOST_PICTURES:
                        _pictures(parts)
                yield key, parts
                _check_end(archive)
        except DAMAGED as error:
            reason = " ".join(str(error).lower().split())
            logger.warning("cannot read %s to its end: %s; going on with the next", path, reason)


def expand(pattern: str) -> Iterator[str]:
    """``train-{00..02}.tar`` -> its three names; several pairs of braces are all expanded.

    >>> list(expand("{train,val}-{8..10}.tar"))[2:4]
    ['train-10.tar', 'val-8.tar']
    """
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    first, last, words = found.groups()
    each_of = words.split(",") if words else (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    for word in each_of:
        yield from expand(pattern[: found.start()] + word + pattern[found.end() :])


def cache_folder() -> Path:
    """Where indices of tar files are kept: ``backsight`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "backsight"


def _pictures(parts: Parts) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The pictures of a sample, of which the first is taken.

    Raises:
        UserError: there are so many that they are of several samples.
    """
    found = [each for kind, each in parts.items() if f".{kind.rpartition('.')[2]}" in SUFFIXES]
    if len(found) > MOST_PICTURES:
        names = ", ".join(member.name for member, _ in found[:2])
        raise UserError(
            f"more than {MOST_PICTURES} pictures have the same key, as {names} (webdataset's keys end at the first "
            "dot): rename them"
        )
    return found[:1]


def _label(parts: Parts) -> int | None:
    """The class in ``NAME.cls``, or under ``cls`` or ``label`` in ``NAME.json``."""
    label: Any = parts["cls"][1].decode("ascii", "replace") if "cls" in parts else None
    with suppress(ValueError, RecursionError):
        found = json.loads(parts["json"][1]) if label is None and "json" in parts else None
        label = found.get("cls", found.get("label")) if isinstance(found, dict) else label
    text = str(label).strip()
    return int(text) if text.isdecimal() and text.isascii() else None


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise unless zeros alone follow the last member: tarfile takes a damaged header for the end."""
    while archive.fileobj and (rest := archive.fileobj.read(2**20)):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("what follows is damaged")

"""Where a stream comes from: tar files as webdataset has them, or a data set that ``datasets`` streams."""

from __future__ import annotations

import logging
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Protocol

from backsight.core import UserError
from backsight.data.folder import SUFFIXES, nearest_name

logger = logging.getLogger(__name__)

DAMAGED = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError)
"""What the readers of archives say of one that is cut short or damaged, each in its own way."""

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""``{000..127}``: the numbers between, written as wide."""


@dataclass(frozen=True)
class Encoded:
    """A picture as it came: its ``id``, the content of its file, and its class if that is known."""

    id: str
    content: bytes
    label: int | None = None


class Shards(Protocol):
    """A number of files that are read from their beginning to their end."""

    @property
    def classes(self) -> Mapping[int, str]:
        """The names of the classes, where they have some."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Iterator[Encoded]:
        """The pictures of one of them, in their order."""
        ...

    def facts(self) -> Sequence[str]:
        """What tells them from others."""
        ...


class TarFiles:
    """``.tar`` files: a picture, and maybe its class as a number in ``NAME.cls``, one after the other.

    What belongs together has the same name up to the first dot of its last part, as webdataset has it.
    """

    classes: Mapping[int, str] = {}

    def __init__(self, pattern: str) -> None:
        self.paths = [Path(path) for each in expand(pattern) for path in sorted(glob(each))]  # noqa: PTH207  (an absolute pattern, which pathlib refuses)
        if not self.paths:
            path = Path(pattern)
            raise UserError(f"no file is called '{pattern}'{nearest_name(path)}: wds: takes DIR/NAME-{{000..127}}.tar")

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Iterator[Encoded]:
        """The pictures of one file; one that is cut short or damaged is named, and read up to there."""
        path = self.paths[index]
        try:
            with tarfile.open(path, "r:*") as archive:
                yield from _samples(archive, path.name)
                _check_end(archive)
        except DAMAGED as error:
            reason = " ".join(str(error).lower().split())
            logger.warning("cannot read %s to its end: %s; going on with the next", path, reason)

    def facts(self) -> Sequence[str]:
        """Every file with its size."""
        return [f"{path.name} {path.stat().st_size}" for path in self.paths]


def expand(pattern: str) -> list[str]:
    """``train-{00..02}.tar`` -> its three names; several pairs of braces are all expanded."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [each for number in numbers for each in expand(pattern[: found.start()] + number + pattern[found.end() :])]


def _samples(archive: tarfile.TarFile, shard: str) -> Iterator[Encoded]:
    """Members that follow each other under the same key are one sample; those without a picture are left out."""
    key, parts = "", dict[str, bytes]()
    for member in archive:
        file = archive.extractfile(member) if member.isfile() else None
        if file is None:
            continue
        folder, slash, name = member.name.rpartition("/")
        stem, _, kind = name.partition(".")
        if f"{folder}{slash}{stem}" != key:
            yield from _sample(shard, key, parts)
            key, parts = f"{folder}{slash}{stem}", {}
        parts[kind.lower()] = file.read()
    yield from _sample(shard, key, parts)


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise unless zeros alone follow the last member: tarfile takes a damaged header for the end."""
    while archive.fileobj and (rest := archive.fileobj.read(2**20)):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("what follows is damaged")


def _sample(shard: str, key: str, parts: Mapping[str, bytes]) -> Iterator[Encoded]:
    picture = next((content for kind, content in parts.items() if f".{kind.rpartition('.')[2]}" in SUFFIXES), None)
    label = parts.get("cls", b"").decode("ascii", "replace").strip()
    if picture is not None:
        yield Encoded(f"{shard}/{key}", picture, int(label) if label.isdigit() else None)


class Rows:
    """A data set of the ``datasets`` library, on the hub or in local files, that is not downloaded first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.table, self.column, self.label = _open(name)
        feature = self.table.features[self.label] if self.label else None
        self.classes = dict(enumerate(getattr(feature, "names", None) or ()))

    def __len__(self) -> int:
        return self.table.num_shards

    def read(self, index: int) -> Iterator[Encoded]:
        """The rows of one shard."""
        for number, row in enumerate(self.table.shard(len(self), index)):
            value = row[self.column]
            content = value if isinstance(value, bytes) else (value or {}).get("bytes")
            if content is None and isinstance(value, Mapping) and Path(value.get("path") or "").is_file():
                content = Path(value["path"]).read_bytes()
            label = row[self.label] if self.label else None
            yield Encoded(f"{index}/{number}", content or b"", None if label is None or label < 0 else int(label))

    def facts(self) -> Sequence[str]:
        """The name, the columns and the number of files: the rows themselves are not read for it."""
        return [self.name, str(self.table.features), str(len(self))]


def _open(name: str) -> tuple[Any, str, str | None]:
    """A streamed table, its column of pictures left encoded, and its column of classes if there is one."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise UserError("'stream:' needs the datasets library: pip install 'backsight[data]'") from error
    path, (remote, _, split) = Path(name), name.partition(":")
    pattern = str(path / "**" / "*.parquet") if path.is_dir() else name
    local = path.exists() or glob(pattern)  # noqa: PTH207
    try:
        if local:
            table = datasets.load_dataset("parquet", data_files=pattern, split="train", streaming=True)
        else:
            table = datasets.load_dataset(remote, split=split or "train", streaming=True)
        table = table if table.features else table._resolve_features()
    except (OSError, ValueError, KeyError, RuntimeError, DatasetsError) as error:
        raise UserError(f"cannot stream '{name}': {' '.join(str(error).split())[:200]}") from error
    return _columns(name, table)


def _columns(name: str, table: Any) -> tuple[Any, str, str | None]:
    """The table with its pictures left encoded, their column, and that of the classes if there is one."""
    from datasets import ClassLabel, Image

    features: Mapping[str, Any] = table.features or {}
    images = [column for column, kind in features.items() if isinstance(kind, Image)]
    encoded = [column for column, kind in features.items() if isinstance(kind, Mapping) and "bytes" in kind]
    if not images + encoded:
        raise UserError(f"{name} has no column of pictures: its columns are {', '.join(features)}")
    table = table.cast_column(images[0], Image(decode=False)) if images else table
    labels = [column for column, kind in features.items() if isinstance(kind, ClassLabel) or column == "label"]
    return table, (images + encoded)[0], labels[0] if labels else None

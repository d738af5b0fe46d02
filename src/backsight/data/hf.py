"""Data sets of the ``datasets`` library: ``hf:NAME[:SPLIT]`` (hub or local folder), ``parquet:FILE_OR_DIR``, and
``stream:NAME[:SPLIT]``, which is not downloaded first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backsight.core import UserError
from backsight.data.base import Splits
from backsight.data.decode import UnreadableImage
from backsight.data.folder import existing
from backsight.data.source import Reading, Source
from backsight.data.split import PART, arrange
from backsight.data.streams import Encoded, hold_out

if TYPE_CHECKING:
    from datasets import Dataset, Features

LABEL_COLUMNS = ("label", "labels", "fine_label")
"""The columns to take the label from, where there are several that could be it."""


class Rows(Source):
    """The rows of one table, decoded by us and not by the library; an id is the split and the row's number.

    The picture is the first image column (or one of encoded bytes), the label the first column of class labels.
    """

    def __init__(self, name: str, split: str, table: Dataset, reading: Reading) -> None:
        column, (label, classes) = picture_column(name, table.features), label_column(table.features)
        self.pictures: Any = left_encoded(table.select_columns(column), column)
        ids = [f"{split}/{row}" for row in range(len(table))]
        super().__init__(name, ids, classes, reading, list(table[label]) if label else [])

    def picture(self, index: int) -> Path | bytes:
        """The row's encoded picture, or the file that it names."""
        (value,) = self.pictures[index].values()
        picture = encoded_in(value)
        if picture is None:
            raise UnreadableImage(f"cannot read {self.where(index)}: the row has no picture")
        return picture

    def facts(self) -> Iterable[str]:
        """Every row's id, with the size of its picture in bytes (the path, where it is a file) and its label."""
        labels = self.labels or [None] * len(self)
        for identity, size, label in zip(self.ids, _sizes(self.pictures), labels, strict=True):
            yield f"{identity} {size} {label}"


def open_huggingface(spec: str, reading: Reading) -> Splits:
    """``hf:NAME[:SPLIT]`` -> train, validation and test.

    NAME is a data set on the hub (owner/name), a local folder that ``datasets`` can load or once saved, or a
    ``.parquet`` file. The splits that it comes in are used as in :func:`~backsight.data.split.arrange`.

    Raises:
        UserError: it cannot be loaded, or has no pictures; the extra ``data`` is not installed.
    """
    rest = spec.partition(":")[2]
    name, _, split = (rest, "", "") if Path(rest).exists() else rest.partition(":")
    if name.endswith(".parquet"):
        return open_parquet(spec, reading)
    with _library(name, "; 'hf:' takes owner/name on the hub, or a local folder, and maybe :SPLIT") as datasets:
        if any((Path(name) / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
            saved: Any = datasets.load_from_disk(name)
            found = saved[split] if split else saved
        else:
            found = datasets.load_dataset(name, split=split or None)
    return _arrange(spec, found, split or "train", reading)


def open_parquet(spec: str, reading: Reading) -> Splits:
    """``parquet:FILE_OR_DIR`` -> train, validation and test.

    One file is divided; of a folder's files, those with train, validation or test in their names are those parts.

    Raises:
        UserError: there is no such file or folder, or no picture in it; the extra ``data`` is not installed.
    """
    path = existing(Path(spec.partition(":")[2]))
    if path.is_dir() and next(path.rglob("*.parquet"), None) is None:
        raise UserError(f"folder '{path}' has no .parquet files: for pictures say 'folder:{path}'")
    with _library(str(path)) as datasets:
        if path.is_dir():
            found = datasets.load_dataset("parquet", data_dir=str(path))
        else:
            found = datasets.load_dataset("parquet", data_files=str(path), split="train")
    return _arrange(spec, found, path.stem, reading)


@contextmanager
def _library(name: str, advice: str = "") -> Iterator[Any]:
    """The library, to load the data set ``name`` with.

    Raises:
        UserError: it is not installed, or cannot load that; with ``advice``.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise UserError(
            "'hf:', 'parquet:' and 'stream:' need the datasets library: pip install 'backsight[data]'"
        ) from error
    try:
        yield datasets
    except (OSError, ValueError, KeyError, RuntimeError, DatasetsError) as error:
        raise UserError(f"cannot load '{name}': {' '.join(str(error).split())[:200]}{advice}") from error


def _arrange(spec: str, loaded: Any, split: str, reading: Reading) -> Splits:
    """One table is divided; of several those are used that are called train, validation or test."""
    if not isinstance(loaded, dict):
        return arrange({"train": Rows(spec, split, loaded, reading)}, reading.seed)
    known = {PART[name.lower()]: name for name in reversed(loaded) if name.lower() in PART}
    known = known or {"train": next(iter(loaded))}
    return arrange({part: Rows(spec, name, loaded[name], reading) for part, name in known.items()}, reading.seed)


def picture_column(name: str, features: Features) -> str:
    """The column of pictures: the first of images, or of encoded bytes.

    Raises:
        UserError: there is none.
    """
    from datasets import Image

    known: Mapping[str, Any] = features
    images = [column for column, feature in known.items() if isinstance(feature, Image)]
    encoded = [
        column
        for column, feature in known.items()
        if (isinstance(feature, Mapping) and "bytes" in feature) or "binary" in getattr(feature, "dtype", "")
    ]
    if not images + encoded:
        raise UserError(f"{name} has no column of pictures: its columns are {', '.join(features)}")
    return (images + encoded)[0]


def left_encoded(table: Any, column: str) -> Any:
    """The table, whose library does not decode the pictures in that column."""
    from datasets import Image

    return table.cast_column(column, Image(decode=False)) if isinstance(table.features[column], Image) else table


def encoded_in(value: Any) -> Path | bytes | None:
    """The picture that a row holds, or the file that it names; None if it has none."""
    if isinstance(value, Mapping):
        return value.get("bytes") or (Path(value["path"]) if value.get("path") else None)
    return value


def label_column(features: Features) -> tuple[str | None, dict[int, str]]:
    """The column of labels, if there is one, and the names of the classes, if they have some."""
    from datasets import ClassLabel

    for column in sorted(features, key=lambda column: column not in LABEL_COLUMNS):
        feature: Any = features[column]
        if isinstance(feature, ClassLabel):
            return column, dict(enumerate(feature.names))
        if column in LABEL_COLUMNS and getattr(feature, "dtype", "").startswith("int"):
            return column, {}
    return None, {}


def _sizes(pictures: Dataset) -> Iterator[Any]:
    """The size in bytes of every picture, or its path, without reading the bytes."""
    from pyarrow import compute, types

    for table in pictures.with_format("arrow").iter(1000):
        encoded: Any = table
        (column,) = encoded.columns
        if not types.is_struct(column.type):
            yield from compute.call_function("binary_length", [column]).to_pylist()
            continue
        fields = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
        lengths = compute.call_function("binary_length", [fields["bytes"]]).to_pylist()
        paths = fields["path"].to_pylist() if "path" in fields else lengths
        yield from (path if length is None else length for length, path in zip(lengths, paths, strict=True))


# ---- read while it is trained on


def open_stream(spec: str, reading: Reading) -> Splits:
    """``stream:NAME`` -> a stream to train on, and the first pictures held out from it.

    NAME is a data set on the hub (owner/name, and maybe :SPLIT), or parquet files: one, a folder, or a pattern.

    Raises:
        UserError: there is no such data, or not a picture for each part among the first.
    """
    return hold_out(spec, StreamedRows(spec.partition(":")[2]), reading)


class StreamedRows:
    """A table of which one row after the other is fetched: the shards of a stream."""

    def __init__(self, name: str) -> None:
        self.name = name
        path, (remote, _, split) = Path(name), name.partition(":")
        pattern = str(path / "**" / "*.parquet") if path.is_dir() else name
        with _library(name) as datasets:
            if path.exists() or glob(pattern):  # noqa: PTH207
                table = datasets.load_dataset("parquet", data_files=pattern, split="train", streaming=True)
            else:
                table = datasets.load_dataset(remote, split=split or "train", streaming=True)
            table = table if table.features else table._resolve_features()
        self.column: str = picture_column(name, table.features)
        self.label: str | None
        self.classes: dict[int, str]
        self.label, self.classes = label_column(table.features)
        self.table: Any = left_encoded(table, self.column)

    def __len__(self) -> int:
        return self.table.num_shards

    def read(self, index: int, start: int = 0) -> Iterator[Encoded]:
        """The rows of one shard, from number ``start`` on."""
        rows = self.table.shard(len(self), index).skip(start)
        # In batches: a table iterated row by row divides itself among the workers of a loader once more.
        for number, batch in enumerate(rows.iter(1), start):
            row = {name: value for name, (value,) in batch.items()}
            picture = encoded_in(row[self.column])
            if isinstance(picture, Path):
                picture = picture.read_bytes() if picture.is_file() else None
            label = row[self.label] if self.label else None
            yield Encoded(f"{index}/{number}", picture or b"", None if label is None or label < 0 else label)

    def facts(self) -> Sequence[str]:
        """The name, the columns and the number of files: the rows themselves are not read for it."""
        return [self.name, str(self.table.features), str(len(self))]

"""Data sets of the ``datasets`` library: ``hf:NAME[:SPLIT]`` (hub or local folder) and ``parquet:FILE_OR_DIR``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backsight.core import UserError
from backsight.data.base import Splits, Target
from backsight.data.decode import UnreadableImage
from backsight.data.folder import nearest_name
from backsight.data.source import Reading, Source
from backsight.data.split import PART, arrange

if TYPE_CHECKING:
    from datasets import Dataset

LABEL_COLUMNS = ("label", "labels", "fine_label")
"""The columns to take the label from, where there are several that could be it."""


class Rows(Source):
    """The rows of one table, decoded by us and not by the library; an id is the split and the row's number.

    The picture is the first image column (or one of encoded bytes), the label the first column of class labels.
    """

    def __init__(self, name: str, split: str, table: Dataset, reading: Reading) -> None:
        self.pictures = _encoded(name, table)
        self.labels, classes = _labels(table)
        super().__init__(name, [f"{split}/{row}" for row in range(len(table))], classes, reading)

    def picture(self, index: int) -> Path | bytes:
        """The row's encoded picture, or the file that it names."""
        (value,) = self.pictures[index].values()
        if isinstance(value, Mapping):
            value = value["bytes"] or Path(value.get("path") or "")
        if value is None or value == Path():
            raise UnreadableImage(f"cannot read {self.where(index)}: the row has no picture")
        return value

    def target(self, index: int, original: tuple[int, int]) -> Target:  # noqa: ARG002
        """The row's label; hidden ones (negative, or empty) are None."""
        label = self.labels[index] if self.labels else None
        return Target(label=label if label is not None and label >= 0 else None)

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
    return _arrange(spec, _load(name, split, {}), split or "train", reading)


def open_parquet(spec: str, reading: Reading) -> Splits:
    """``parquet:FILE_OR_DIR`` -> train, validation and test.

    One file is divided; of a folder's files, those with train, validation or test in their names are those parts.

    Raises:
        UserError: there is no such file or folder, or no picture in it; the extra ``data`` is not installed.
    """
    path = Path(spec.partition(":")[2])
    if not path.exists():
        raise UserError(f"there is no '{path}'{nearest_name(path)}")
    if path.is_dir() and next(path.rglob("*.parquet"), None) is None:
        raise UserError(f"folder '{path}' has no .parquet files: for pictures say 'folder:{path}'")
    files = {"data_dir": str(path)} if path.is_dir() else {"data_files": str(path)}
    return _arrange(spec, _load("parquet", "" if path.is_dir() else "train", files), path.stem, reading)


def _load(name: str, split: str, files: Mapping[str, Any]) -> Any:
    """A table, or several by name."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise UserError("'hf:' and 'parquet:' need the datasets library: pip install 'backsight[data]'") from error
    try:
        if any((Path(name) / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
            saved = datasets.load_from_disk(name)
            return saved[split] if split else saved
        return datasets.load_dataset(name, split=split or None, **files)
    except (OSError, ValueError, KeyError, RuntimeError, DatasetsError) as error:
        what = next(iter(files.values()), name)
        advice = "" if files else " ('hf:' takes owner/name on the hub, or a local folder, and maybe :SPLIT)"
        raise UserError(f"cannot load '{what}': {' '.join(str(error).split())[:200]}{advice}") from error


def _arrange(spec: str, loaded: Any, split: str, reading: Reading) -> Splits:
    """One table is divided; of several those are used that are called train, validation or test."""
    if not isinstance(loaded, dict):
        return arrange({"train": Rows(spec, split, loaded, reading)}, reading.seed)
    known = {PART[name.lower()]: name for name in reversed(loaded) if name.lower() in PART}
    known = known or {"train": next(iter(loaded))}
    return arrange({part: Rows(spec, name, loaded[name], reading) for part, name in known.items()}, reading.seed)


def _encoded(name: str, table: Dataset) -> Dataset:
    """The column of pictures alone, left encoded."""
    from datasets import Image

    for column, feature in table.features.items():
        if isinstance(feature, Image):
            return table.select_columns(column).cast_column(column, Image(decode=False))
    for column, feature in table.features.items():
        if (isinstance(feature, Mapping) and "bytes" in feature) or "binary" in getattr(feature, "dtype", ""):
            return table.select_columns(column)
    raise UserError(f"{name} has no column of pictures: its columns are {', '.join(table.features)}")


def _labels(table: Dataset) -> tuple[list[int | None], dict[int, str]]:
    """The labels of all rows, if there are any, and their names."""
    from datasets import ClassLabel

    for column in sorted(table.features, key=lambda column: column not in LABEL_COLUMNS):
        feature: Any = table.features[column]
        if isinstance(feature, ClassLabel):
            return list(table[column]), dict(enumerate(feature.names))
        if column in LABEL_COLUMNS and getattr(feature, "dtype", "").startswith("int"):
            return list(table[column]), {}
    return [], {}


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

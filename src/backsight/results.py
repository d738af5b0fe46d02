"""What was measured: one table of values by model, stage, metric, seed and image, with pictures, and its files.

Everything that is measured is a :class:`Result`: what an experiment finds (``result.json``), the errors of a run
(``evaluation.json``), and the reconstructions of a user's own pictures (``results.json``). The files have one format.
Those of version 0.1 are read as well.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from backsight.core import UserError
from backsight.figures import image_png
from backsight.io import as_record, in_words, read_object, read_text, write_bytes, write_text
from backsight.metrics import Interval, interval
from backsight.validation import Record

if TYPE_CHECKING:
    import pandas

FORMAT = "backsight.result/2"
"""Changes when a reader of the old format would misread the new one."""

NAMES = ("result.json", "results.json", "evaluation.json")
"""The files that hold a result, in the order in which they are looked for in a folder."""

MEAN_IMAGE = "mean image"
"""The stage of what is measured of the mean image of the training data: a reconstruction that knows nothing."""

INPUT = "input"
"""The stage of the pictures of the input itself."""

LAYER_ERROR = "layer error"
"""The metric of an inverse on its own, in units of the variance of its target."""

SHARES = ("accuracy", "found")
"""The metrics whose values are 0 or 1: their mean is a share of images."""

TRAINING_LOSS = "training loss"
"""The metric of the losses of training, which have a label ``step`` and one column."""

_FIX = "restore it, or make it again"

Label = str | int | float | bool
_DIGITS = 6  # kept of every value
_COLUMNS = ("model", "stage", "metric", "seed", "image", "value")


@dataclass(frozen=True)
class Measurement:
    """One quantity under one condition.

    ``labels`` say which (``model``, ``stage``, ``metric``, ``region``, ...). ``values`` are ``S images``: a row for
    each seed, a column for each image in the order of the subject's data, NaN where an image has no answer (no
    object of a class, say). A quantity without seeds (of the forward model alone) has one row; one that only all
    images together have (average precision) has one column. ``stated`` is the interval where the values do not
    tell it: of a ratio of means, of an average precision, of the means that files of version 0.1 keep.
    """

    labels: Mapping[str, Label]
    values: Tensor
    stated: Interval | None = None

    def known(self) -> Tensor:
        """The values of the images that have an answer from every seed, ``S images``."""
        return self.values[:, self.values.isfinite().all(0)]

    def interval(self) -> Interval:
        """The mean with its 95 % interval for new images and seeds (:mod:`backsight.metrics.statistics`); NaN where no
        image has an answer. A single value (an average precision, of one seed) has a mean and no interval.
        """
        if self.stated is not None:
            return self.stated
        known = self.known()
        share = self.labels.get("metric") in SHARES
        return interval(known, share=share) if known.numel() > 1 else Interval(self.mean(), math.nan, math.nan)

    def mean(self) -> float:
        """The mean over the images that have an answer, and over seeds."""
        known = self.known()
        return float(known.mean()) if known.numel() else math.nan

    def by_seed(self) -> list[float]:
        """The mean of every seed over the images that have an answer; empty where none has."""
        known = self.known()
        return known.mean(1).tolist() if known.numel() else []


@dataclass(frozen=True)
class Picture:
    """A picture ``3 H W`` in [0, 1] and what it shows. With a ``file``, a path relative to the folder of the result, it
    is kept there as PNG; without, inside the result's own file."""

    labels: Mapping[str, Label]
    image: Tensor
    file: str = ""


class PictureFile(Picture):
    """A picture in a PNG file of a result's folder, which is read whenever ``image`` is used: a result may have more
    pictures than fit into memory."""

    def __init__(self, labels: Mapping[str, Label], folder: str | Path, file: str) -> None:
        for name, value in {"labels": labels, "file": file, "path": Path(folder, file).resolve()}.items():
            object.__setattr__(self, name, value)

    path: Path

    @property
    def image(self) -> Tensor:  # type: ignore[override]
        """``3 H W`` in [0, 1]."""
        return _read_png(self.path)


@dataclass(frozen=True)
class Result:
    """What was measured: the measurements of one experiment, or the errors of a run.

    ``experiment`` is its name (``evaluation`` for the errors of a run). ``subjects`` has a card for each model that was
    measured (its weights, data, fingerprint, number of images, seeds), ``settings`` what the experiment was called
    with, ``command`` what the user typed, ``notes`` what a reader of the numbers must know. ``images`` are the ids of
    the images of each model by its name, in the order of the columns of its measurements; a model may be missing.

    >>> errors = Measurement({"model": "m", "stage": "encoder", "metric": "mse"}, torch.tensor([[0.25, 0.75]]))
    >>> result = Result("stage_error", [{"model": "m", "seeds": [7]}], [errors])
    >>> result.one(stage="encoder").mean()
    0.5
    >>> print(result.to_frame().to_string(index=False))
    model   stage metric  seed  image  value
        m encoder    mse     7      0   0.25
        m encoder    mse     7      1   0.75
    """

    experiment: str
    subjects: Sequence[Mapping[str, Any]]
    measurements: Sequence[Measurement]
    pictures: Sequence[Picture] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    command: str = ""
    images: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        from backsight.display import result_html

        return result_html(self)

    @classmethod
    def join(cls, results: Sequence[Result]) -> Result:
        """Results of one experiment, of several models say, as one; settings and command are those of the first.

        Raises:
            UserError: there are none, or they are of different experiments.
        """
        if len({result.experiment for result in results}) != 1:
            names = ", ".join(result.experiment for result in results) or "none"
            raise UserError(f"results of one experiment can be joined, these are: {names}")
        first = results[0]
        return cls(
            first.experiment,
            [card for result in results for card in result.subjects],
            [each for result in results for each in result.measurements],
            [each for result in results for each in result.pictures],
            first.settings,
            [note for result in results for note in result.notes],
            first.command,
            {model: ids for result in results for model, ids in result.images.items()},
        )

    def select(self, **labels: Label) -> list[Measurement]:
        """The measurements that carry all of ``labels``, in order."""
        return [each for each in self.measurements if _carries(each.labels, labels)]

    def one(self, **labels: Label) -> Measurement:
        """The one measurement that carries all of ``labels``.

        Raises:
            UserError: there is none, or more than one.
        """
        found = self.select(**labels)
        if len(found) != 1:
            raise UserError(f"{len(found)} measurements of {self.experiment} carry {labels}, one was expected")
        return found[0]

    def shown(self, **labels: Label) -> list[Picture]:
        """The pictures that carry all of ``labels``, in order."""
        return [each for each in self.pictures if _carries(each.labels, labels)]

    def values_of(self, label: str) -> list[Any]:
        """Every value that ``label`` has in the measurements and pictures, in order of appearance."""
        carriers = [*self.measurements, *self.pictures]
        return list(dict.fromkeys(each.labels[label] for each in carriers if label in each.labels))

    # ---- as a table

    def to_frame(self) -> pandas.DataFrame:
        """The measurements as a pandas table, a row for each value.

        Columns: ``model``, ``stage``, ``metric``, ``seed``, ``image`` (its id where that is known, its position
        otherwise), ``value``, then every other label that occurs. A cell is missing where a measurement has no such
        label, no seeds, or one value for all images. A value that no image has (NaN) has a row too.
        """
        import pandas

        rows = []
        for each in self.measurements:
            seeds, images = self._seeds(each), self._images(each)
            for seed, row in zip(seeds, each.values.tolist(), strict=True):
                rows += [
                    {**each.labels, "seed": seed, "image": image, "value": value}
                    for image, value in zip(images, row, strict=True)
                ]
        labels = dict.fromkeys(name for each in self.measurements for name in each.labels)
        others = [name for name in labels if name not in _COLUMNS]
        frame = pandas.DataFrame(rows, columns=[*_COLUMNS, *others])
        return frame.astype({"seed": "Int64", "value": "float64"})

    def _seeds(self, measurement: Measurement) -> list[int | None]:
        """The seed of each row; None for the one row of a quantity without seeds."""
        num, model = len(measurement.values), measurement.labels.get("model")
        for card in self.subjects:
            if card.get("model") == model and len(card.get("seeds", ())) == num:
                return list(card["seeds"])
        return [None] if num == 1 else list(range(num))

    def _images(self, measurement: Measurement) -> list[str | int | None]:
        """The image of each column; None for the one column of a quantity of all images."""
        num, ids = measurement.values.shape[1], self.images.get(str(measurement.labels.get("model")), ())
        if len(ids) == num:
            return list(ids)
        return [None] if num == 1 else list(range(num))

    def to_table(self) -> str:
        """A CSV table: a line for each measurement with its labels, mean, 95 % interval, images and seeds."""
        labels = list(dict.fromkeys(name for each in self.measurements for name in each.labels))
        stream = io.StringIO()
        writer = csv.DictWriter(stream, [*labels, "mean", "low", "high", "images", "seeds"], lineterminator="\n")
        writer.writeheader()
        for each in self.measurements:
            numbers = {name: _rounded(bound) for name, bound in each.interval()._asdict().items()}
            seeds, images = each.known().shape
            writer.writerow({**each.labels, **numbers, "images": images, "seeds": seeds})
        return stream.getvalue()

    # ---- files

    def to_json(self) -> str:
        """The whole result; :meth:`from_json` reads it. Values keep six digits, a value that is not finite is null."""
        content = {
            "format": FORMAT,
            "experiment": self.experiment,
            "command": self.command,
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "subjects": [dict(subject) for subject in self.subjects],
            "images": {model: list(ids) for model, ids in self.images.items()},
            "measurements": [_measurement_to_json(each) for each in self.measurements],
            "pictures": [_picture_to_json(each) for each in self.pictures],
        }
        return json.dumps(content, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "the text", folder: str | Path | None = None) -> Result:
        """The inverse of :meth:`to_json`.

        Args:
            text: the JSON.
            where: it came from, for messages.
            folder: where the files of its pictures are.

        Raises:
            UserError: it is not JSON, not of this format or one of version 0.1, or a picture is missing.
        """
        from backsight.old_results import convert

        try:
            value = convert(read_object(text, where, _FIX))
            if value.get("format") != FORMAT:
                raise UserError(f"{where} has a result in another format: this version reads {FORMAT}")
            saved = as_record(value, _Saved, where, _FIX)
            return cls(
                saved.experiment,
                saved.subjects,
                [_read_measurement(each, where) for each in saved.measurements],
                [_read_picture(each, folder) for each in saved.pictures],
                saved.settings,
                saved.notes,
                saved.command,
                saved.images,
            )
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, OSError) as error:
            raise UserError(f"{where} is no result of backsight, {in_words(error)}: {_FIX}") from error

    def save(self, folder: str | Path) -> Path:
        """Write ``table.csv`` and ``result.json`` into ``folder``, each whole, the result last."""
        write_text(Path(folder) / "table.csv", self.to_table())
        return self.write(Path(folder) / "result.json")

    def write(self, path: str | Path) -> Path:
        """Write the result to ``path``, whole, after the files of those pictures that have one."""
        path = Path(path)
        for each in self.pictures:
            target = (path.parent / each.file).resolve()
            if each.file and not (isinstance(each, PictureFile) and each.path == target):
                write_bytes(target, image_png(each.image))
        return write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read a result, given by its own path or its folder's; files of version 0.1 too.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        path = Path(path)
        if path.is_dir():
            path = next((path / name for name in NAMES if (path / name).is_file()), path / NAMES[0])
        if not path.is_file():
            raise UserError(f"no result at {path}: give a {', '.join(NAMES)}, or the folder it is in")
        return cls.from_json(read_text(path, _FIX), str(path), path.parent)


def _carries(labels: Mapping[str, Label], wanted: Mapping[str, Label]) -> bool:
    return all(name in labels and labels[name] == value for name, value in wanted.items())


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if value is not None and math.isfinite(value) else None


def _measurement_to_json(measurement: Measurement) -> dict[str, Any]:
    values = measurement.values
    if values.ndim != 2:
        raise ValueError(f"values of shape (seeds, images) were expected, not {tuple(values.shape)}")
    rows = [[_rounded(value) for value in row] for row in values.tolist()]
    stated = {} if measurement.stated is None else {"stated": [_rounded(bound) for bound in measurement.stated]}
    return {"labels": dict(measurement.labels), "values": rows, **stated}


@dataclass(frozen=True)
class _SavedMeasurement(Record):
    labels: Mapping[str, Label]
    values: list[list[float | None]]
    stated: tuple[float | None, float | None, float | None] | None = None


@dataclass(frozen=True)
class _SavedPicture(Record):
    labels: Mapping[str, Label]
    png: str | None = None
    file: str = ""


@dataclass(frozen=True)
class _Saved(Record):
    """What a result's file holds."""

    experiment: str
    subjects: list[Mapping[str, Any]]
    measurements: list[_SavedMeasurement]
    pictures: list[_SavedPicture]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    command: str = ""
    images: Mapping[str, list[str]] = field(default_factory=dict)


def _read_measurement(saved: _SavedMeasurement, where: str) -> Measurement:
    if len({len(row) for row in saved.values}) > 1:
        raise UserError(f"{where} has a measurement whose seeds have not the same images: {_FIX}")
    rows = [[_number(each) for each in row] for row in saved.values]
    stated = None if saved.stated is None else Interval(*map(_number, saved.stated))
    return Measurement(
        saved.labels, torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(rows[0]) if rows else 0), stated
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _picture_to_json(picture: Picture) -> dict[str, Any]:
    labels = dict(picture.labels)
    if picture.file:
        return {"labels": labels, "file": picture.file}
    return {"labels": labels, "png": base64.b64encode(image_png(picture.image)).decode()}


def _read_picture(saved: _SavedPicture, folder: str | Path | None) -> Picture:
    from PIL import Image

    if saved.png is not None:
        return Picture(saved.labels, _read_png(io.BytesIO(base64.b64decode(saved.png))))
    home = Path(folder or ".").resolve()
    picture = PictureFile(saved.labels, home, saved.file)
    if not picture.path.is_relative_to(home):
        raise UserError(f"picture '{picture.file}' lies outside the folder of its result: give a path inside it")
    try:
        with Image.open(picture.path):  # reads its head alone
            return picture
    except OSError as error:
        raise UserError(f"picture '{picture.path}' cannot be read: {error.strerror or 'it is no image'}") from error


def _read_png(source: Path | io.BytesIO) -> Tensor:
    import numpy
    from PIL import Image

    with Image.open(source) as picture:
        return torch.from_numpy(numpy.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255

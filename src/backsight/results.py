"""What an experiment finds: numbers by image and seed, pictures, and the files that they are kept in.

``result.json`` is all that a figure is drawn from and all that a claim is tested on: every value of every image and
seed, and every picture. ``table.csv`` has a line for each measurement with its 95 % interval.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsight.core import UserError
from backsight.figures import image_png
from backsight.io import in_words, read_object, read_text, write_text
from backsight.metrics import Interval, bootstrap

FORMAT = "backsight.experiment/1"
"""Changes when a reader of the old schema would misread the new one."""

_MEND = "restore it, or do the experiment again"

Label = str | int | float | bool
_DIGITS = 6  # kept of every value


@dataclass(frozen=True)
class Measurement:
    """One quantity under one condition.

    ``labels`` say which (``model``, ``stage``, ``metric``, ``region``, ...). ``values`` are ``S images``: a row for
    each seed, a column for each image in the order of the subject's data, NaN where an image has no answer (no
    object of a class, say). A quantity without seeds (of the forward model alone) has one row; one that only all
    images together have (average precision) has one column.
    """

    labels: Mapping[str, Label]
    values: Tensor

    def known(self) -> Tensor:
        """The values of the images that have an answer from every seed, ``S images``."""
        return self.values[:, self.values.isfinite().all(0)]

    def interval(self) -> Interval:
        """The mean with its 95 % bootstrap interval over images and seeds; NaN where no image has an answer.

        A single value (an average precision, of one seed) has a mean and no interval: resampled, it is always itself.
        """
        known = self.known()
        return bootstrap(known) if known.numel() > 1 else Interval(self.mean(), math.nan, math.nan)

    def mean(self) -> float:
        """The mean over the images that have an answer, and over seeds."""
        known = self.known()
        return float(known.mean()) if known.numel() else math.nan


@dataclass(frozen=True)
class Picture:
    """A picture ``3 H W`` in [0, 1] and what it shows."""

    labels: Mapping[str, Label]
    image: Tensor


@dataclass(frozen=True)
class Result:
    """What one experiment found.

    ``subjects`` has a card for each model that was looked at (its weights, data, fingerprint, images, seeds),
    ``settings`` what the experiment was called with, ``command`` what the user typed, ``notes`` what a reader of the
    numbers must know.
    """

    experiment: str
    subjects: Sequence[Mapping[str, Any]]
    measurements: Sequence[Measurement]
    pictures: Sequence[Picture] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    command: str = ""

    @classmethod
    def join(cls, results: Sequence[Result]) -> Result:
        """The results of one experiment on several subjects as one; settings and command are the first's.

        Raises:
            ValueError: there are none, or they are of several experiments.
        """
        if len({each.experiment for each in results}) != 1:
            raise ValueError("results of one experiment can be joined, one at least")
        return replace(
            results[0],
            subjects=[card for each in results for card in each.subjects],
            measurements=[measurement for each in results for measurement in each.measurements],
            pictures=[picture for each in results for picture in each.pictures],
            notes=[note for each in results for note in each.notes],
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

    def to_json(self) -> str:
        """The whole result; :meth:`from_json` reads it. Values keep six digits, a value that is not finite is null."""
        content = {
            "format": FORMAT,
            "experiment": self.experiment,
            "command": self.command,
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "subjects": [dict(subject) for subject in self.subjects],
            "measurements": [{"labels": dict(m.labels), "values": _to_lists(m.values)} for m in self.measurements],
            "pictures": [
                {"labels": dict(p.labels), "png": base64.b64encode(image_png(p.image)).decode()} for p in self.pictures
            ],
        }
        return json.dumps(content, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "the text") -> Result:
        """The inverse of :meth:`to_json`; ``where`` it came from is told of a damaged one.

        Raises:
            UserError: it is not JSON, or not of this format.
        """
        try:
            value = read_object(text, where, _MEND)
            if value.pop("format") != FORMAT:
                raise UserError(f"{where} has a result in another format: this version reads {FORMAT}")
            measurements = [Measurement(m["labels"], _to_tensor(m["values"])) for m in value.pop("measurements")]
            pictures = [Picture(p["labels"], _read_png(p["png"])) for p in value.pop("pictures")]
            return cls(**value, measurements=measurements, pictures=pictures)
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            told = f"{where} is not an experiment's result.json ({FORMAT})"
            raise UserError(f"{told}, {in_words(error)}: {_MEND}") from error

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

    def save(self, folder: str | Path) -> Path:
        """Write ``table.csv`` and ``result.json`` into ``folder``, each whole, the result last."""
        write_text(Path(folder) / "table.csv", self.to_table())
        return write_text(Path(folder) / "result.json", self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read a ``result.json``, given by its own path or its folder's.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        path = Path(path)
        path = path / "result.json" if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"no result at {path}: give a result.json or the folder it is in")
        return cls.from_json(read_text(path, _MEND), str(path))


def _carries(labels: Mapping[str, Label], wanted: Mapping[str, Label]) -> bool:
    return all(name in labels and labels[name] == value for name, value in wanted.items())


def _rounded(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _to_lists(values: Tensor) -> list[list[float | None]]:
    if values.ndim != 2:
        raise ValueError(f"values of shape (seeds, images) were expected, not {tuple(values.shape)}")
    return [[_rounded(value) for value in row] for row in values.tolist()]


def _to_tensor(rows: list[list[float | None]]) -> Tensor:
    return torch.tensor([[math.nan if value is None else value for value in row] for row in rows], dtype=torch.float64)


def _read_png(text: str) -> Tensor:
    import numpy
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return torch.from_numpy(numpy.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255

"""What a report is made of: typed, and the schema of ``results.json``.

``results.json`` is the dataclasses of this file as nested JSON objects, with ``format`` in front. The pictures are PNG
files beside it, named by their path relative to its folder. A number that is not finite is written as null.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from backsight.core import UserError
from backsight.figures import image_png
from backsight.io import in_words, read_object, read_text, write_bytes, write_text

FORMAT = "backsight.results/1"
"""Changes when a reader of the old schema would misread the new one."""

_MEND = "restore it, or run `backsight reconstruct` again"

INPUT = "input"
"""The column of the pictures that holds the photo itself."""

Bounds = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class ModelCard:
    """The forward model: ``name``, ``weights`` (where they come from), ``random`` (they were never trained),
    ``details`` in the order in which they are shown, and ``figures``: how good it is at its own task, where that is
    known (the shipped models: on the 2,000 test scenes of their cards)."""

    name: str
    weights: str
    random: bool = False
    details: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DataCard:
    """What was measured on: ``name`` as the user wrote it, ``split``, ``num_images``, ``fingerprint`` (hexadecimal),
    ``size`` (H, W) in pixels, ``fit`` ("stretch" or "crop"), ``skipped`` unreadable files, ``value_range``."""

    name: str
    split: str
    num_images: int
    fingerprint: str
    size: tuple[int, int]
    fit: str = "stretch"
    skipped: int = 0
    value_range: str = "RGB in [0, 1]"


@dataclass(frozen=True)
class StageErrors:
    """The errors of one entry of the chain (``backbone``, ``backbone@local``).

    ``metrics`` has a value per seed (the mean over images) for ``mse``, ``psnr``, ``ssim``; ``intervals`` (mean, low,
    high) at 95 % over images and seeds; ``layer_error`` per seed: the squared error of the inverse's target
    in units of the target's own variance, where 1 is no better than its mean.
    """

    entry: str
    metrics: dict[str, list[float | None]]
    intervals: dict[str, Bounds] = field(default_factory=dict)
    layer_error: list[float | None] | None = None


@dataclass(frozen=True)
class PictureRow:
    """One image: its ``id``, a ``caption``, and for every column the PNG files, one per seed (the input has one)."""

    id: str
    caption: str
    images: dict[str, list[str]]


@dataclass(frozen=True)
class Results:
    """All of a run that the page shows.

    ``command`` is what the user typed, ``card`` facts by name in the order in which they are shown (images seen,
    images/s, device hours, peak memory, versions), ``stages`` in the order of the forward pass, ``mean_image`` the
    metrics of the data's mean image, ``curves`` the records of :func:`backsight.figures.curves`.
    """

    title: str
    command: str
    model: ModelCard
    data: DataCard
    card: dict[str, str | int | float] = field(default_factory=dict)
    stages: list[StageErrors] = field(default_factory=list)
    mean_image: dict[str, float | None] = field(default_factory=dict)
    pictures: list[PictureRow] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        """The schema above as indented JSON."""
        return json.dumps(_finite({"format": FORMAT, **asdict(self)}), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "the text") -> Results:
        """The inverse of :meth:`to_json`; ``where`` it came from is told of a damaged one.

        Raises:
            UserError: it is not JSON, not of this format, or a part is missing or unknown.
        """
        try:
            value = read_object(text, where, _MEND)
            if value.pop("format") != FORMAT:
                raise UserError(f"{where} has results in another format: this version reads {FORMAT}")
            return cls(**{**value, **_parts(value)})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{where} is not a results.json of backsight ({FORMAT}), {in_words(error)}: {_MEND}"
            ) from error

    def save(self, folder: str | Path) -> Path:
        """Write ``results.json`` into ``folder``, whole."""
        return write_text(Path(folder) / "results.json", self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read a ``results.json``, given by its own path or its folder's.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        path = Path(path)
        path = path / "results.json" if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"no results at {path}: give a results.json or the folder it is in")
        return cls.from_json(read_text(path, _MEND), str(path))


def save_pictures(
    folder: str | Path, id: str, caption: str, images: Mapping[str, Tensor | Sequence[Tensor]]
) -> PictureRow:
    """Write the pictures of one image as PNG files into ``folder/pictures`` and name them.

    Args:
        folder: Where ``results.json`` goes.
        id: Of the image, unique in its data; it may be anything, a path too.
        caption: Shown below the id.
        images: For every column ``3 H W`` in [0, 1], one for each seed (or a tensor ``seeds 3 H W``).
    """
    names: dict[str, list[str]] = {}
    for column, pictures in images.items():
        names[column] = [f"pictures/{_file_name(id)}/{_file_name(column)}.{seed}.png" for seed in range(len(pictures))]
        for name, picture in zip(names[column], pictures, strict=True):
            write_bytes(Path(folder) / name, image_png(picture))
    return PictureRow(id, caption, names)


def _file_name(text: str) -> str:
    """A short name that every file system takes; the digest keeps names apart whose letters look alike."""
    letters = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:40]
    return f"{letters}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _finite(value: Any) -> Any:
    """The value with None for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parts(value: dict[str, Any]) -> dict[str, Any]:
    """The typed parts of the results from their plain JSON."""
    return {
        "model": ModelCard(**value["model"]),
        "data": DataCard(**{**value["data"], "size": tuple(value["data"]["size"])}),
        "stages": [_stage(part) for part in value["stages"]],
        "pictures": [PictureRow(**part) for part in value["pictures"]],
    }


def _stage(value: dict[str, Any]) -> StageErrors:
    return StageErrors(**{**value, "intervals": {name: tuple(b) for name, b in value["intervals"].items()}})

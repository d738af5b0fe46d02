"""The pictures of a report as the page carries them: read, averaged over seeds, and written into its text."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from backsight.core import UserError
from backsight.report.results import PictureRow

LARGEST_PNG = 60_000
"""A larger picture goes into the page as WebP of quality 90, which looks the same; in bytes."""

SMALL_SIDE = 160
"""Pictures narrower than this are enlarged pixel by pixel, not smoothed."""


@dataclass(frozen=True)
class View:
    """What a cell shows while the view ``name`` is chosen. ``source`` is a data URI."""

    name: str
    source: str


@dataclass(frozen=True)
class Cell:
    """One place in the grid: its views (a single one named "" where all views show the same), and its pixels."""

    column: str
    views: tuple[View, ...]
    width: int
    height: int

    @property
    def small(self) -> bool:
        """Whether its pixels are to be seen as squares."""
        return self.width < SMALL_SIDE


@dataclass(frozen=True)
class Gallery:
    """The rows of cells, the names of the views, and the spread that the brightest colour stands for."""

    columns: tuple[str, ...]
    rows: tuple[tuple[PictureRow, tuple[Cell, ...]], ...]
    views: tuple[str, ...]
    largest_spread: float


def build_gallery(rows: Sequence[PictureRow], folder: Path) -> Gallery:
    """Read the pictures of ``rows`` from ``folder`` and make every view of them.

    Where there are several seeds, the views are each seed, their mean, and their spread: the standard
    deviation between seeds, averaged over the colours, on one scale for all pictures.

    Raises:
        UserError: a picture is missing, is no image, lies outside ``folder``, or seeds differ in size.
    """
    arrays = [{column: _read_all(folder, names) for column, names in row.images.items()} for row in rows]
    spreads = [{column: _spread(seeds) for column, seeds in row.items()} for row in arrays]
    every = [spread for row in spreads for spread in row.values() if spread is not None]
    largest = _round_up(max((float(numpy.quantile(spread, 0.995)) for spread in every), default=0.0))
    num_seeds = max((len(seeds) for row in arrays for seeds in row.values()), default=1)
    views = tuple(f"seed {seed}" for seed in range(num_seeds)) + (("mean", "spread") if num_seeds > 1 else ())
    cells = [
        tuple(_cell(column, seeds, spread[column], largest) for column, seeds in row.items())
        for row, spread in zip(arrays, spreads, strict=True)
    ]
    columns = tuple(dict.fromkeys(column for row in rows for column in row.images))
    if any(len(seeds) not in (1, num_seeds) for row in arrays for seeds in row.values()):
        raise UserError(f"every column of the pictures needs one picture, or {num_seeds}: one for each seed")
    return Gallery(columns, tuple(zip(rows, cells, strict=True)), views, largest)


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of the media type ``kind`` as an address that is its own content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def spread_colours(num: int) -> list[str]:
    """``num`` colours of the scale of spread from none to the largest, as "#rrggbb"."""
    levels = _colour(numpy.linspace(0, 1, num)[None], 1.0)[0]
    return ["#{:02x}{:02x}{:02x}".format(*level) for level in levels]


def _cell(column: str, seeds: Any, spread: Any, largest: float) -> Cell:
    pictures = {f"seed {index}": picture for index, picture in enumerate(seeds)} if len(seeds) > 1 else {"": seeds[0]}
    if spread is not None:
        pictures |= {"mean": seeds.mean(0).round().astype("uint8"), "spread": _colour(spread, largest)}
    views = tuple(View(name, _picture_uri(picture)) for name, picture in pictures.items())
    return Cell(column, views, width=seeds.shape[2], height=seeds.shape[1])


def _read_all(folder: Path, names: Sequence[str]) -> Any:
    """``seeds H W 3`` of uint8."""
    pictures = [_read(folder, name) for name in names]
    if not pictures or len({picture.shape for picture in pictures}) != 1:
        raise UserError(
            f"pictures of one size, one for each seed, were expected: {', '.join(names) or 'there are none'}"
        )
    return numpy.stack(pictures)


def _read(folder: Path, name: str) -> Any:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"picture '{name}' lies outside the folder of results.json: give a path inside it")
    try:
        with Image.open(path) as picture:
            return numpy.array(picture.convert("RGB"))
    except OSError as error:
        raise UserError(
            f"picture '{path}' of the report cannot be read: {error.strerror or 'it is no image'}"
        ) from error


def _spread(seeds: Any) -> Any:
    """``seeds H W 3`` of uint8 -> the standard deviation between seeds ``H W``, RGB in [0, 1]; None for one seed."""
    if len(seeds) < 2:
        return None
    return numpy.sqrt((seeds / numpy.float32(255)).var(0, ddof=1).mean(-1))


def _colour(values: Any, largest: float) -> Any:
    """``H W`` from 0 to ``largest`` -> ``H W 3`` of uint8, in colours whose lightness rises evenly."""
    import matplotlib

    return matplotlib.colormaps["viridis"](values / max(largest, 1e-6), bytes=True)[..., :3]


def _round_up(value: float) -> float:
    """To a number with one or two digits, so that the end of the scale reads well."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** math.floor(math.log10(value))
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return round(next(step for step in steps if step * unit >= value * (1 - 1e-9)) * unit, 12)


def _picture_uri(picture: Any) -> str:
    encoded = _encoded(picture, format="PNG")
    if len(encoded) <= LARGEST_PNG:
        return data_uri(encoded, "image/png")
    return data_uri(_encoded(picture, format="WEBP", quality=90), "image/webp")


def _encoded(picture: Any, **options: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(picture).save(stream, **options)
    return stream.getvalue()

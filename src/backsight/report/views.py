"""What a page carries: pictures, read off a result and averaged over seeds, and numbers and names as it writes them."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from backsight.core import UserError
from backsight.figures import colour_map, image_png, spread, to_array
from backsight.results import Picture

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
class Row:
    """The pictures of one image: its ``id``, the model's answer, a cell for each stage, and how far it lies from the
    training data, in units of what is usual there (0 where that is not known)."""

    id: str
    caption: str
    cells: Sequence[Cell]
    distance: float = 0.0


@dataclass(frozen=True)
class Gallery:
    """The rows of cells, the names of the views, and the spread that the brightest colour stands for."""

    columns: Sequence[str]
    rows: Sequence[Row]
    views: Sequence[str]
    largest_spread: float


def build_gallery(pictures: Sequence[Picture]) -> Gallery:
    """Make every view of pictures with the labels ``image``, ``stage`` and ``row`` (``seed 0``, ...), and ``caption``.

    Where there are several seeds, the views are each seed, their mean, and their spread: the standard
    deviation between seeds, averaged over the colours, on one scale for all pictures.

    Raises:
        UserError: seeds differ in size, or a stage has neither one picture nor as many as there are seeds.
    """
    images: dict[str, dict[str, list[Picture]]] = {}
    for picture in pictures:
        columns = images.setdefault(str(picture.labels["image"]), {})
        columns.setdefault(str(picture.labels["stage"]), []).append(picture)
    every = [seeds for columns in images.values() for seeds in columns.values()]
    longest = max(every, key=len, default=[])
    if any(len(seeds) not in (1, len(longest)) for seeds in every):
        raise UserError(f"one picture, or one for each of {len(longest)} seeds, was expected at every stage")
    names = [str(picture.labels["row"]) for picture in longest] if len(longest) > 1 else []
    spreads = (spread(_stack(seeds)) for seeds in every if len(seeds) > 1)
    largest = _round_up(max((float(each.flatten().quantile(0.995)) for each in spreads), default=0.0))
    rows = [
        Row(
            image,
            str(_label(columns, "caption", "")),
            [_cell(stage, _stack(seeds), names, largest) for stage, seeds in columns.items()],
            float(_label(columns, "distance", 0.0)),
        )
        for image, columns in images.items()
    ]
    stages = list(dict.fromkeys(stage for columns in images.values() for stage in columns))
    return Gallery(stages, rows, [*names, "mean", "spread"] if names else [], largest)


def _label(columns: Mapping[str, Sequence[Picture]], name: str, default: Any) -> Any:
    """What the first of the pictures of an image says under ``name``."""
    pictures = [each for seeds in columns.values() for each in seeds]
    return next((each.labels[name] for each in pictures if name in each.labels), default)


def _stack(pictures: Sequence[Picture]) -> Tensor:
    """``seeds 3 H W``, rounded to the levels that a file has: a page looks the same whatever it is made from."""
    images = [picture.image for picture in pictures]
    if len({image.shape for image in images}) > 1:
        raise UserError(f"pictures of one size were expected for all seeds of {pictures[0].labels['image']}")
    return (torch.stack(images).clamp(0, 1) * 255).round() / 255


def _cell(column: str, seeds: Tensor, names: Sequence[str], largest: float) -> Cell:
    views = dict(zip(names, seeds, strict=True)) if len(seeds) > 1 else {"": seeds[0]}
    if len(seeds) > 1:
        views |= {"mean": seeds.mean(0), "spread": colour_map(spread(seeds), largest)}
    shown = tuple(View(name, picture_uri(image_png(picture))) for name, picture in views.items())
    return Cell(column, shown, width=seeds.shape[-1], height=seeds.shape[-2])


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of the media type ``kind`` as an address that is its own content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def spread_colours(num: int) -> list[str]:
    """``num`` colours of the scale of spread from none to the largest, as "#rrggbb"."""
    levels = to_array(colour_map(torch.linspace(0, 1, num)[None], 1.0))[0]
    return ["#{:02x}{:02x}{:02x}".format(*level) for level in levels]


def picture_uri(png: bytes, largest: int = LARGEST_PNG) -> str:
    """A PNG file as a data URI: as it is, or where it has more than ``largest`` bytes as WebP of quality 90."""
    if len(png) <= largest:
        return data_uri(png, "image/png")
    stream = BytesIO()
    Image.open(BytesIO(png)).convert("RGB").save(stream, format="WEBP", quality=90)
    return data_uri(stream.getvalue(), "image/webp")


def _round_up(value: float) -> float:
    """To a number with one or two digits, so that the end of the scale reads well."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** math.floor(math.log10(value))
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return round(next(step for step in steps if step * unit >= value * (1 - 1e-9)) * unit, 12)


# ---- numbers and names as a page writes them


def format_number(value: str | int | float | None) -> str:
    """Three digits of a fraction, zeros too, all of a whole number, a dash for what is not known, text as it is.

    >>> format_number(0.5), format_number(5120.7), format_number(38400), format_number(None)
    ('0.500', '5,121', '38,400', '–')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".removesuffix(".")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def format_effect(value: float) -> str:
    """Three decimals, of large numbers none: what is smaller than that is no effect in the unit of any claim."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "\N{MINUS SIGN}")


def format_bounds(low: float | None, high: float | None) -> str:
    """An interval in brackets; where there is none, words that say so."""
    return "(no interval)" if low is None or high is None else f"[{format_effect(low)}, {format_effect(high)}]"

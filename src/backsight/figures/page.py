"""Figures of several parts, one below the other: panels of lines, maps, rows of pictures, each with a heading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from backsight.figures.house_style import LETTER_WIDTH, LETTERS, LINE_HEIGHT, WIDTH, style, wrapped
from backsight.figures.pictures import to_array
from backsight.figures.side_by_side import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAP = 0.05
"""Between two pictures, in inches."""

_FEWEST = 7
"""Fewer columns of pictures leave the right of the page empty: large pictures show no more, and take many pages."""

_MOST = 10
"""More columns make the pictures too small."""

_GUTTER = 0.2
"""Between two blocks of pictures, in units of a picture."""


@dataclass(frozen=True)
class Part:
    """A strip of a page across its whole width: ``height`` in inches, its ``heading`` ("" for none), and what draws
    it into a matplotlib subfigure."""

    height: float
    draw: Callable[[Any], object]
    heading: str = ""


def page(parts: Sequence[Part]) -> Figure:
    """One figure of all ``parts``, from the top."""
    from matplotlib.figure import Figure

    strips = [strip for part in parts for strip in ([_heading(part.heading)] if part.heading else []) + [part]]
    heights = [strip.height for strip in strips]
    with style():
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=_GAP / 2, h_pad=_GAP / 2, wspace=0, hspace=0)
        places = figure.subfigures(len(strips), 1, height_ratios=heights, squeeze=False)
        for place, strip in zip(places[:, 0], strips, strict=True):
            strip.draw(place)
    return figure


def _heading(text: str) -> Part:
    """A strip with nothing but a heading."""
    return _headings({0.008: wrapped(text, WIDTH)})


def _headings(texts: Mapping[float, str]) -> Part:
    """A strip with nothing but headings, by the share of the width at which they begin."""
    look: Any = {"fontsize": LETTERS + 1, "fontweight": "bold", "va": "center"}
    lines = max(text.count("\n") + 1 for text in texts.values())
    return Part(
        LINE_HEIGHT * 1.5 * lines, lambda place: [place.text(at, 0.5, text, **look) for at, text in texts.items()]
    )


@dataclass(frozen=True)
class Block:
    """Pictures of one kind under a ``heading``: for every one of ``names`` a row of ``3 H W`` in [0, 1] (None leaves a
    place empty), one for each of ``columns``."""

    heading: str
    columns: Sequence[str]
    names: Sequence[str]
    rows: Sequence[Sequence[Tensor | None]]


def picture_parts(blocks: Sequence[Block]) -> list[Part]:
    """Blocks below each other; those with the same names of rows beside each other where there is room. A block without
    pictures is left out."""
    return [part for shelf in _shelves([block for block in blocks if block.rows]) for part in _shelf_parts(shelf)]


def _shelves(blocks: Sequence[Block]) -> list[list[Block]]:
    shelves: list[list[Block]] = []
    for block in blocks:
        last = shelves[-1] if shelves else []
        together = sum(len(each.columns) for each in [*last, block])
        if last and list(last[0].names) == list(block.names) and together <= _MOST:
            last.append(block)
        else:
            shelves.append([block])
    return shelves


def _shelf_parts(shelf: Sequence[Block]) -> list[Part]:
    """The headings, and under them one table of pictures with gaps between the blocks."""
    columns: list[str | None] = []
    rows: list[list[Tensor | None]] = [[] for _ in shelf[0].names]
    starts: list[float] = []
    for block in shelf:
        gap = [None] if columns else []
        starts.append(_width([*columns, *gap]))
        columns += [*gap, *block.columns]
        for row, more in zip(rows, block.rows, strict=True):
            row += [*gap, *more]
    side = _side(columns)
    texts = {(2 * LINE_HEIGHT + start * side) / WIDTH if start else 0.008: block.heading
             for start, block in zip(starts, shelf, strict=True)}  # fmt: skip
    return [_headings(texts), picture_part(rows, columns, shelf[0].names)]


def _width(columns: Sequence[str | None]) -> float:
    """Of all columns together, in units of a picture."""
    return sum(_GUTTER if title is None else 1.0 for title in columns)


def _side(columns: Sequence[str | None]) -> float:
    """The width of a picture, in inches."""
    return (WIDTH - 2 * LINE_HEIGHT) / max(_FEWEST, _width(columns))


def picture_part(
    rows: Sequence[Sequence[Tensor | None]],
    columns: Sequence[str | None],
    row_labels: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    heading: str = "",
) -> Part:
    """Rows of pictures, as :func:`backsight.figures.grid` shows them, to go with other parts on one page.

    Args:
        rows: ``3 H W`` in [0, 1] each; None leaves its place empty.
        columns: The title of every column; None for a gap without pictures.
        row_labels: The name of every row, "" for none.
        captions: A line under every picture, such as its error.
        heading: Over all of it.

    Raises:
        ValueError: there is nothing to show, or a row has not as many pictures as there are columns.
    """
    if not rows or any(len(row) != len(columns) for row in rows):
        raise ValueError(f"every row needs {len(columns)} pictures, one for each column; there are {len(rows)} rows")
    side = _side(columns)
    titles = [wrapped(title or "", side) for title in columns]
    proportions = [_proportion(row) for row in rows]
    lines = 1.3 * (1 + max(title.count("\n") for title in titles)) + (1.2 * len(rows) if captions else 0)
    height = sum(side * proportion + _GAP for proportion in proportions) + LINE_HEIGHT * lines + _GAP
    names = [shortened(label, side * proportion) for label, proportion in zip(row_labels, proportions, strict=True)]
    texts = captions or [[""] * len(columns)] * len(rows)
    widths = [_width([title]) for title in columns]
    empty = max(0.0, _FEWEST - sum(widths))  # the pictures stand on the left of what is left free
    ratios = {"height_ratios": proportions, "width_ratios": [*widths, *([empty] if empty else [])]}

    def draw(place: Any) -> None:
        spaces = place.subplots(len(rows), len(ratios["width_ratios"]), squeeze=False, gridspec_kw=ratios)
        for down, row in enumerate(rows):
            for across, picture in enumerate(row):
                _show(spaces[down, across], picture, titles[across] if down == 0 else "", texts[down][across])
            for axes in spaces[down, len(row) :]:
                axes.set_axis_off()
            spaces[down, 0].set_ylabel(names[down], fontsize=LETTERS, labelpad=2)

    return Part(height, draw, heading)


def _proportion(row: Sequence[Tensor | None]) -> float:
    """The height of a row's pictures in units of their width."""
    return next((picture.shape[-2] / picture.shape[-1] for picture in row if picture is not None), 1.0)


def _show(axes: Any, picture: Tensor | None, title: str, caption: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if picture is not None:
        axes.imshow(to_array(picture))
    axes.set_title(title, pad=3)
    axes.set_xlabel(caption, fontsize=LETTERS, labelpad=1.5)


def legend_above(place: Any, handles: Sequence[Any], names: Sequence[str]) -> None:
    """A legend over the panels of ``place`` (a figure or subfigure), in as many columns as its width has room for."""
    width = place.bbox.width / place.figure.dpi
    longest = LETTER_WIDTH * max(map(len, names), default=1) + 0.55
    columns = max(1, min(len(names), int(width / longest)))
    place.legend(handles, names, loc="outside upper left", ncols=columns, columnspacing=1.2)

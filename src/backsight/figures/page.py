"""The layout of every figure: parts below each other, on pages that a paper can carry; tables of pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from backsight.figures.house_style import (
    HEIGHT,
    LETTER_WIDTH,
    LETTERS,
    LINE_HEIGHT,
    RESOLUTION,
    WIDTH,
    ink,
    style,
    wrapped,
)
from backsight.figures.pictures import to_array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 0.05
"""Between two pictures, in inches."""

FEWEST = 7
"""Fewer columns of pictures leave the right of the page empty: large pictures show no more, and take many pages."""

MOST = 10
"""More columns make the pictures too small."""

GUTTER = 0.2
"""Between two blocks of pictures, in units of a picture."""

HEADING = 1.5 * LINE_HEIGHT
"""Of one line of a heading, in inches."""

Pages = list["Figure"]
"""The pages of a figure."""

Caption = str | Sequence[tuple[str, str]]
"""What stands under a picture: a text, which is wrapped, or lines with the colour of each."""


@dataclass(frozen=True)
class Part:
    """A strip across a page.

    Attributes:
        height: in inches, without the heading.
        draw: draws it into a matplotlib figure or subfigure of that height.
        heading: above it, or several side by side, each with how many inches from the left it begins; "" for none.
        cut: what fits into a height in inches, and the rest; None where it cannot be cut there.
    """

    height: float
    draw: Callable[[Any], object]
    heading: str | Sequence[tuple[float, str]] = ""
    cut: Callable[[float], tuple[Part, Part] | None] = lambda _: None

    @property
    def strips(self) -> list[Part]:
        """The heading, if there is one, and the part without it."""
        texts = [(0.0, self.heading)] if isinstance(self.heading, str) else self.heading
        texts = [(at, wrapped(text, WIDTH - at)) for at, text in texts if text]
        look: Any = {"fontsize": LETTERS + 1, "fontweight": "bold", "va": "center"}
        height = HEADING * max((text.count("\n") + 1 for _, text in texts), default=0)
        above = Part(height, lambda place: [place.text(0.008 + at / WIDTH, 0.5, text, **look) for at, text in texts])
        return [*([above] if texts else []), replace(self, heading="")]

    @property
    def whole(self) -> float:
        """The height with the heading, in inches."""
        return sum(strip.height for strip in self.strips)


def pages(parts: Sequence[Part]) -> Pages:
    """Figures of ``parts`` from the top, 7 inches wide and at most 9 high, laid out.

    A part that does not fit on what is left of a page is cut, or begins the next one; one that is higher than a page
    and cannot be cut is drawn as high as the page.
    """
    sheets: list[list[Part]] = [[]]
    waiting = list(parts)
    while waiting:
        part = waiting.pop(0)
        room = HEIGHT - sum(each.whole for each in sheets[-1])
        if part.whole <= room:
            sheets[-1].append(part)
        elif halves := part.cut(room - (part.whole - part.height)):
            sheets[-1].append(halves[0])
            sheets.append([])
            waiting.insert(0, halves[1])
        elif sheets[-1]:
            sheets.append([])
            waiting.insert(0, part)
        else:
            sheets[-1].append(replace(part, height=HEIGHT - (part.whole - part.height)))
    return [_sheet(each) for each in sheets if each]


def _sheet(parts: Sequence[Part]) -> Figure:
    """One page. It is laid out once, so that it can be drawn into several files."""
    from matplotlib.figure import Figure

    strips = [strip for part in parts for strip in part.strips]
    heights = [strip.height for strip in strips]
    with style():
        figure = Figure(figsize=(WIDTH, sum(heights)), dpi=RESOLUTION, layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=GAP / 2, h_pad=GAP / 2, wspace=0, hspace=0)
        places = figure.subfigures(len(strips), 1, height_ratios=heights, squeeze=False)
        for place, strip in zip(places[:, 0], strips, strict=True):
            strip.draw(place)
        engine.execute(figure)
        figure.set_layout_engine("none")
    return figure


# ---- tables of pictures


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
    shelves: list[list[Block]] = []
    for block in (block for block in blocks if any(picture is not None for row in block.rows for picture in row)):
        last = shelves[-1] if shelves else []
        together = sum(len(each.columns) for each in [*last, block])
        if last and list(last[0].names) == list(block.names) and together <= MOST:
            last.append(block)
        else:
            shelves.append([block])
    return [_shelf_part(shelf) for shelf in shelves]


def panel_axes(place: Any, num: int, columns: int) -> list[Any]:
    """Axes for ``num`` panels in ``place``, ``columns`` of them side by side; then those that stay empty."""
    axes = place.subplots(math.ceil(num / columns), columns, squeeze=False).flatten()
    for each in axes[num:]:
        each.set_axis_off()
    return list(axes)


def text_part(text: str) -> Part:
    """A paragraph across the page."""
    lines = wrapped(text, WIDTH - 0.2)
    look: Any = {"fontsize": LETTERS, "va": "center"}
    return Part(LINE_HEIGHT * 1.2 * (lines.count("\n") + 2), lambda place: place.text(0.008, 0.5, lines, **look))


def _shelf_part(shelf: Sequence[Block]) -> Part:
    """One table of pictures with gaps between the blocks, and a heading over each."""
    columns: list[str | None] = []
    rows: list[list[Tensor | None]] = [[] for _ in shelf[0].names]
    starts: list[float] = []
    for block in shelf:
        gap = [None] if columns else []
        starts.append(_units([*columns, *gap]))
        columns += [*gap, *block.columns]
        for row, more in zip(rows, block.rows, strict=True):
            row += [*gap, *more]
    table = _table(rows, columns, shelf[0].names)
    ends = [*starts[1:], MOST + len(shelf)]
    headings = [
        (table.left * (start > 0) + start * table.side, shortened(block.heading, (end - start) * table.side))
        for start, end, block in zip(starts, ends, shelf, strict=True)
    ]
    return _part(table, headings, together=1)


def picture_part(
    rows: Sequence[Sequence[Tensor | None]],
    columns: Sequence[str | None],
    row_labels: Sequence[str],
    captions: Sequence[Sequence[Caption]] | None = None,
    heading: str | Sequence[tuple[float, str]] = "",
    together: int = 1,
) -> Part:
    """Rows of pictures, all of one width: a row for every image, say, and a column for every stage.

    Args:
        rows: ``3 H W`` in [0, 1] each; None leaves its place empty.
        columns: the title of every column; None for a gap without pictures.
        row_labels: the name of every row, "" for none.
        captions: what stands under every picture, such as its error.
        heading: over all of it.
        together: so many rows stay on one page.

    Raises:
        ValueError: there is nothing to show, or a row has not as many pictures as there are columns.
    """
    return _part(_table(rows, columns, row_labels, captions), heading, together)


def grid(
    rows: Sequence[Sequence[Tensor | None]],
    columns: Sequence[str],
    row_labels: Sequence[str],
    captions: Sequence[Sequence[Caption]] | None = None,
) -> Figure:
    """A single table of pictures as a figure of its own, 7 inches wide and as high as it needs; the arguments are those
    of :func:`picture_part`."""
    from matplotlib.figure import Figure

    table = _table(rows, columns, row_labels, captions, fewest=1)
    with style():
        figure = Figure(figsize=(WIDTH, table.height))
        table.draw(figure)
    return figure


@dataclass(frozen=True)
class _Table:
    """Pictures and their places; lengths in inches. ``side`` is the width of a picture."""

    rows: Sequence[Sequence[Tensor | None]]
    columns: Sequence[str | None]
    row_labels: Sequence[str]
    captions: Sequence[Sequence[Sequence[tuple[str, str]]]]
    left: float
    side: float

    @property
    def titles(self) -> list[str]:
        return [wrapped(title or "", self.side) for title in self.columns]

    @property
    def top(self) -> float:
        """Of the titles."""
        return LINE_HEIGHT * 1.1 * (1 + max(title.count("\n") for title in self.titles)) + GAP

    @property
    def heights(self) -> list[float]:
        """Of every row, captions and gap included."""
        lines = [max((len(text) for text in row), default=0) for row in self.captions]
        return [self.side * _proportion(row) + LINE_HEIGHT * 1.1 * count + GAP * (1 + (count > 0))
                for row, count in zip(self.rows, lines, strict=True)]  # fmt: skip

    @property
    def height(self) -> float:
        return self.top + sum(self.heights) + GAP

    def part(self, rows: slice) -> _Table:
        """Some of the rows."""
        return replace(self, rows=self.rows[rows], row_labels=self.row_labels[rows], captions=self.captions[rows])

    def draw(self, place: Any) -> None:
        """One pair of axes whose unit is the inch, with its origin at the upper left."""
        axes = place.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(self.height, 0))
        axes.set_axis_off()
        lefts = [self.left + self.side * _units(self.columns[:index]) for index in range(len(self.columns))]
        width = self.side - GAP
        for left, title in zip(lefts, self.titles, strict=True):
            axes.text(left + width / 2, self.top - GAP, title, ha="center", va="bottom", fontsize=LETTERS + 1)
        down = self.top
        for row, label, captions, height in zip(self.rows, self.row_labels, self.captions, self.heights, strict=True):
            side = self.side * _proportion(row) - GAP
            beside, name = (self.left - 0.2 * LINE_HEIGHT) / 2, _row_label(label, side)
            axes.text(beside, down + side / 2, name, rotation=90, ha="center", va="center", fontsize=LETTERS)
            for left, picture, lines in zip(lefts, row, captions, strict=True):
                if picture is not None:
                    axes.imshow(to_array(picture), extent=(left, left + width, down + side, down), aspect="auto")
                for number, (text, colour) in enumerate(lines):
                    at = down + side + GAP / 2 + LINE_HEIGHT * 1.1 * (number + 0.5)
                    axes.text(
                        left + width / 2, at, text, color=colour or ink(), ha="center", va="center", fontsize=LETTERS
                    )
            down += height


def _table(
    rows: Sequence[Sequence[Tensor | None]],
    columns: Sequence[str | None],
    row_labels: Sequence[str],
    captions: Sequence[Sequence[Caption]] | None = None,
    fewest: int = FEWEST,
) -> _Table:
    if not rows or any(len(row) != len(columns) for row in rows):
        raise ValueError(f"every row needs {len(columns)} pictures, one for each column; there are {len(rows)} rows")
    left, units = 1.2 * LINE_HEIGHT if any(row_labels) else 0.0, max(fewest, _units(columns))
    side = (WIDTH - left) / units
    heights = [side * _proportion(row) - GAP for row in rows]
    if any("\n" in _row_label(*each) for each in zip(row_labels, heights, strict=True)):
        left += LINE_HEIGHT
        side = (WIDTH - left) / units
    texts = captions or [[""] * len(columns)] * len(rows)
    lines = [[_lines(text, side) for text in row] for row in texts]
    return _Table(rows, columns, row_labels, lines, left, side)


def _row_label(text: str, height: float) -> str:
    """What stands upright beside pictures of ``height`` inches: on two lines if need be, else shortened."""
    lines = wrapped(text, height).split("\n")
    fits = len(lines) <= 2 and max(map(len, lines)) * LETTER_WIDTH <= height
    return "\n".join(lines) if fits else shortened(text, height)


def _part(table: _Table, heading: str | Sequence[tuple[float, str]], together: int) -> Part:
    def cut(room: float) -> tuple[Part, Part] | None:
        used, count = table.top + GAP, 0
        for height in table.heights:
            used += height
            if used > room:
                break
            count += 1
        count -= count % together
        if count == 0:
            return None
        return _part(table.part(slice(0, count)), heading, together), _part(
            table.part(slice(count, None)), heading, together
        )

    return Part(table.height, table.draw, heading, cut)


def _lines(caption: Caption, width: float) -> list[tuple[str, str]]:
    """The lines of a caption, each with its colour ("" for that of letters)."""
    if isinstance(caption, str):
        return [(line, "") for line in wrapped(caption, width).splitlines()]
    return [(shortened(text, width), colour) for text, colour in caption]


def _units(columns: Sequence[str | None]) -> float:
    """The width of columns, in units of a picture."""
    return sum(GUTTER if title is None else 1.0 for title in columns)


def _proportion(row: Sequence[Tensor | None]) -> float:
    """The height of a row's pictures in units of their width."""
    return next((picture.shape[-2] / picture.shape[-1] for picture in row if picture is not None), 1.0)


def shortened(text: str, width: float) -> str:
    """At most ``width`` inches of text; what is too much goes from the middle: names often end in a number."""
    letters = max(3, int(width / LETTER_WIDTH))
    half = (letters - 1) // 2
    return text if len(text) <= letters else f"{text[: letters - 1 - half]}…{text[-half:]}"


def legend_above(place: Any, handles: Sequence[Any], names: Sequence[str]) -> None:
    """A legend over the panels of ``place`` (a figure or subfigure), in as many columns as its width has room for."""
    width = place.bbox.width / place.figure.dpi
    longest = LETTER_WIDTH * max(map(len, names), default=1) + 0.55
    columns = max(1, min(len(names), int(width / longest)))
    place.legend(handles, names, loc="outside upper left", ncols=columns, columnspacing=1.2)

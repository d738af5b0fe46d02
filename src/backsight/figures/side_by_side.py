"""Pictures side by side: the input beside every stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from backsight.core import Detections
from backsight.figures.house_style import LETTER_WIDTH, LETTERS, LINE_HEIGHT, WIDTH, style, wrapped
from backsight.figures.pictures import draw_detections, to_array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAP = 0.04
"""Between two pictures, in inches."""


def grid(
    rows: Sequence[Sequence[Tensor | None]],
    columns: Sequence[str],
    row_labels: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    detections: Sequence[Detections | None] | None = None,
    threshold: float = 0.5,
    width: float = WIDTH,
) -> Figure:
    """Pictures side by side, all of one width: a row for every image, a column for the input and every stage.

    Args:
        rows: ``3 H W`` in [0, 1] each; None leaves its place empty.
        columns: The title of every column.
        row_labels: The name of every row, "" for none.
        captions: A line under every picture, such as its error.
        detections: For every row, what to draw on its first picture.
        threshold: Only detections with at least this score are drawn.
        width: Of the figure, in inches.

    Raises:
        ValueError: a row has not as many pictures as there are columns, or there is nothing to show.
    """
    from matplotlib.figure import Figure

    if not rows or any(len(row) != len(columns) for row in rows):
        raise ValueError(f"every row needs {len(columns)} pictures, one for each column; there are {len(rows)} rows")
    left = LINE_HEIGHT + _GAP if any(row_labels) else 0.0
    side = (width - left - _GAP * (len(columns) - 1)) / len(columns)
    titles = [wrapped(title, side) for title in columns]
    top = LINE_HEIGHT * (1.2 + max(title.count("\n") for title in titles)) + _GAP
    below = LINE_HEIGHT + _GAP if captions else 0.0
    heights = [side * _proportion(row) for row in rows]
    with style():
        figure = Figure(figsize=(width, top + sum(heights) + (below + _GAP) * len(rows)))
        down = top
        for index, height in enumerate(heights):
            row = _with_detections(rows[index], detections[index] if detections else None, threshold, side)
            texts = captions[index] if captions else [""] * len(row)
            for place, (picture, text) in enumerate(zip(row, texts, strict=True)):
                corner = (left + place * (side + _GAP), down)
                _add_picture(figure, picture, corner, (side, height), titles[place] if index == 0 else "", text)
            label = shortened(row_labels[index], height)
            _add_text(figure, label, (LINE_HEIGHT / 2, down + height / 2), rotation=90)
            down += height + below + _GAP
    return figure


def _proportion(row: Sequence[Tensor | None]) -> float:
    """The height of a row's pictures in units of their width."""
    return next((picture.shape[-2] / picture.shape[-1] for picture in row if picture is not None), 1.0)


def _with_detections(
    row: Sequence[Tensor | None], detections: Detections | None, threshold: float, side: float
) -> Sequence[Tensor | None]:
    """The row with the detections drawn on its first picture, in letters as small as print allows."""
    if detections is None or row[0] is None:
        return row
    return [draw_detections(row[0], detections, threshold, letters=LETTERS / 72 / side), *row[1:]]


def _add_picture(
    figure: Figure,
    picture: Tensor | None,
    corner: tuple[float, float],
    size: tuple[float, float],
    title: str,
    caption: str,
) -> None:
    """``corner`` (x, y) is the upper left one, seen from the figure's upper left; ``size`` (width, height), inches."""
    across, down = figure.get_size_inches()
    bottom = 1 - (corner[1] + size[1]) / down
    axes = figure.add_axes((corner[0] / across, bottom, size[0] / across, size[1] / down))
    axes.set_axis_off()
    if picture is not None:
        axes.imshow(to_array(picture), aspect="auto")
    axes.set_title(title, pad=3)
    _add_text(figure, caption, (corner[0] + size[0] / 2, corner[1] + size[1] + LINE_HEIGHT / 2 + _GAP / 2))


def _add_text(figure: Figure, text: str, centre: tuple[float, float], rotation: float = 0) -> None:
    """Small letters around ``centre`` (x, y) in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    position = (centre[0] / across, 1 - centre[1] / down)
    figure.text(*position, text, rotation=rotation, ha="center", va="center", fontsize=LETTERS)


def shortened(text: str, width: float) -> str:
    """At most ``width`` inches of text; what is too much goes from the middle: names often end in a number."""
    letters = max(3, int(width / LETTER_WIDTH))
    half = (letters - 1) // 2
    return text if len(text) <= letters else f"{text[: letters - 1 - half]}…{text[-half:]}"

"""Effects with their intervals, one below the other, each in words and on a scale of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backsight.figures.house_style import GREEN, HEIGHT, LETTERS, LINE_HEIGHT, VERMILLION, WIDTH, ink, wrapped
from backsight.figures.page import Part, pages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORDS, _SCALE, _VERDICT = (0.05, 3.55), (3.7, 5.4), (5.55, 7.0)
"""Where the three columns begin and end, in inches."""

_LEGEND = 0.52
"""The height of what says what shades, dashes and hollow marks are, in inches."""

COLOURS = {"holds": GREEN, "does not hold": VERMILLION}
"""Of intervals, by verdict; others are grey."""


@dataclass(frozen=True)
class Bar:
    """An interval on a scale of 0 to 100.

    Attributes:
        mean, low, high: the effect and its interval.
        null: what it is compared with.
        expected: from where to where the claim expects it.
        controls: the effect of what must not have it.
        linear: the effect of a linear inverse, if it was measured.
    """

    mean: float
    low: float
    high: float
    null: float
    expected: tuple[float, float]
    controls: tuple[float, ...] = ()
    linear: float | None = None


@dataclass(frozen=True)
class ForestRow:
    """A sentence, its effect and its control in words, its verdict, and how they are drawn; None where there is
    nothing."""

    sentence: str
    effect: str
    verdict: str
    bar: Bar | None


def forest_pages(rows: Sequence[ForestRow]) -> list[Figure]:
    """All rows on pages, each under a legend: shaded, what is claimed; dashed, the null; hollow, untrained things; a
    cross, a linear inverse."""
    sheets: list[list[ForestRow]] = [[]]
    for row in rows:
        if sum(map(_height, sheets[-1])) + _height(row) > HEIGHT - _LEGEND:
            sheets.append([])
        sheets[-1].append(row)
    return pages([_part(sheet) for sheet in sheets if sheet])


def _texts(row: ForestRow) -> tuple[str, str, str]:
    """Sentence, effect and verdict, wrapped."""
    width = _WORDS[1] - _WORDS[0]
    return wrapped(row.sentence, width), wrapped(row.effect, width), wrapped(row.verdict, _VERDICT[1] - _VERDICT[0])


def _height(row: ForestRow) -> float:
    sentence, effect, verdict = (text.count("\n") + 1 for text in _texts(row))
    return LINE_HEIGHT * 1.05 * max(sentence + effect, verdict) + 0.09


def _part(rows: Sequence[ForestRow]) -> Part:
    height = _LEGEND + sum(map(_height, rows))

    def draw(place: Any) -> None:
        axes = place.add_axes((0, 0, 1, 1))  # its unit is the inch, its origin at the upper left
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        axes.set_axis_off()
        headings = (
            "claim; the effect that its verdict hangs on",
            "shaded: claimed; dashed: null; hollow: untrained; cross: linear",
            "verdict",
        )
        for (at, end), text in zip((_WORDS, _SCALE, _VERDICT), headings, strict=True):
            axes.text(at, _LEGEND / 2, wrapped(text, end - at), va="center", fontsize=LETTERS, fontweight="bold")
        down = _LEGEND
        for row in rows:
            _draw_row(axes, row, down)
            down += _height(row)

    return Part(height, draw)


def _draw_row(axes: Any, row: ForestRow, down: float) -> None:
    sentence, effect, verdict = _texts(row)
    below = down + 0.03 + LINE_HEIGHT * 1.05 * (sentence.count("\n") + 1)
    axes.plot((0, WIDTH), (down, down), color="0.85", linewidth=0.5)
    axes.text(_WORDS[0], down + 0.03, sentence, va="top", fontsize=LETTERS)
    axes.text(_WORDS[0], below, effect, va="top", fontsize=LETTERS, color="0.35")
    axes.text(_VERDICT[0], down + 0.03, verdict, va="top", fontsize=LETTERS)
    if row.bar is not None:
        _draw_bar(axes, row.bar, row.verdict, down + _height(row) / 2)


def _draw_bar(axes: Any, bar: Bar, verdict: str, at: float) -> None:
    def place(value: float) -> float:
        return _SCALE[0] + (_SCALE[1] - _SCALE[0]) * min(100.0, max(0.0, value)) / 100

    start, end = (place(each) for each in bar.expected)
    axes.fill_between((start, end), at - 0.09, at + 0.09, color="0.9", linewidth=0)
    axes.plot([place(bar.null)] * 2, (at - 0.12, at + 0.12), color=ink(), linewidth=0.8, linestyle=(0, (2, 2)))
    colour = next((colour for name, colour in COLOURS.items() if verdict.startswith(name)), "0.45")
    axes.plot((place(bar.low), place(bar.high)), (at, at), color=colour, linewidth=2)
    axes.plot(place(bar.mean), at, color=colour, marker="o", markersize=4)
    for control in bar.controls:
        axes.plot(place(control), at, color=colour, marker="D", markersize=4, markerfacecolor="white")
    if bar.linear is not None:
        axes.plot(place(bar.linear), at, color=ink(), marker="x", markersize=5)

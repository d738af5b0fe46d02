"""Effects with their intervals, one below the other, each in words and on a scale of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backsight.figures.house_style import GREEN, LETTERS, LINE_HEIGHT, VERMILLION, WIDTH, ink, wrapped
from backsight.figures.page import Part, pages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORDS, _SCALE, _VERDICT = (0.05, 3.55), (3.7, 5.4), (5.55, 7.0)
"""Where the three columns begin and end, in inches."""

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
    """

    mean: float
    low: float
    high: float
    null: float
    expected: tuple[float, float]
    controls: tuple[float, ...] = ()


@dataclass(frozen=True)
class ForestRow:
    """A sentence, its effect and its control in words, its verdict, and how they are drawn; None where there is
    nothing."""

    sentence: str
    effect: str
    verdict: str
    bar: Bar | None


def forest_pages(rows: Sequence[ForestRow]) -> list[Figure]:
    """All rows on pages under a legend: shaded, what is claimed; dashed, the null; hollow, the controls."""
    return pages([_legend(), *map(_part, rows)])


def _legend() -> Part:
    words = "claim; the effect that its verdict hangs on, 95 % interval"
    scale = "shaded: as claimed; dashed: null; hollow: controls"

    def draw(place: Any) -> None:
        axes = _axes(place, 0.4)
        for at, text in ((_WORDS[0], words), (_SCALE[0], wrapped(scale, 1.7)), (_VERDICT[0], "verdict")):
            axes.text(at, 0.18, text, va="center", fontsize=LETTERS, fontweight="bold")

    return Part(0.4, draw)


def _part(row: ForestRow) -> Part:
    sentence, effect = (wrapped(text, _WORDS[1] - _WORDS[0]) for text in (row.sentence, row.effect))
    verdict = wrapped(row.verdict, _VERDICT[1] - _VERDICT[0])
    lines = max(sentence.count("\n") + effect.count("\n") + 2, verdict.count("\n") + 1)
    height = LINE_HEIGHT * 1.05 * lines + 0.09

    def draw(place: Any) -> None:
        axes = _axes(place, height)
        axes.text(_WORDS[0], 0.03, sentence, va="top", fontsize=LETTERS)
        down = 0.03 + LINE_HEIGHT * 1.05 * (sentence.count("\n") + 1)
        axes.text(_WORDS[0], down, effect, va="top", fontsize=LETTERS, color="0.35")
        axes.text(_VERDICT[0], 0.03, verdict, va="top", fontsize=LETTERS)
        axes.plot((0, WIDTH), (height, height), color="0.85", linewidth=0.5)
        if row.bar is not None:
            _draw_bar(axes, row.bar, row.verdict, height / 2)

    return Part(height, draw)


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


def _axes(place: Any, height: float) -> Any:
    """A pair of axes whose unit is the inch, with its origin at the upper left."""
    axes = place.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    return axes

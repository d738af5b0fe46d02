"""Several small charts with one legend: the same lines for every model, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backsight.figures.house_style import LETTER_WIDTH, WIDTH, nth_colour, style
from backsight.figures.lines import ErrorPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
_MARKERS = ("o", "s", "D")
_HEIGHT = 2.1  # inches, of a row of panels


@dataclass(frozen=True)
class Series:
    """A line of a panel: its colour says ``what``, its dashes say ``how``; ``points`` in the order of the stages."""

    what: str
    how: str
    points: Sequence[ErrorPoint]


def panels(
    charts: Mapping[str, Sequence[Series]], label: str, levels: Sequence[float] = (0.0, 1.0), columns: int = 3
) -> Figure:
    """A chart for every title, on one scale, with every mean's interval; the legend below explains colours and dashes.

    Args:
        charts: The lines of each chart by its title.
        label: Of the vertical axis.
        levels: Heights that mean something (all, nothing), drawn across.
        columns: Charts in a row, at most.
    """
    from matplotlib.figure import Figure

    columns = max(1, min(columns, len(charts)))
    rows = math.ceil(len(charts) / columns)
    whats = list(dict.fromkeys(series.what for lines in charts.values() for series in lines))
    hows = list(dict.fromkeys(series.how for lines in charts.values() for series in lines))
    with style():
        figure = Figure(figsize=(WIDTH, rows * _HEIGHT + 0.45), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes in grid.flat[len(charts) :]:
            axes.set_axis_off()
        for axes, (title, lines) in zip(grid.flat, charts.items(), strict=False):
            axes.set_title(title)
            _add_lines(axes, lines, whats, hows)
            for level in levels:
                axes.axhline(level, linewidth=0.6, color="0.6", zorder=0)
        for axes in grid[:, 0]:
            axes.set_ylabel(label)
        figure.legend(handles=_legend(whats, hows), loc="outside lower center", ncols=_fitting(whats, hows))
    return figure


def _add_lines(axes: Any, lines: Sequence[Series], whats: Sequence[str], hows: Sequence[str]) -> None:
    stages = list(dict.fromkeys(point.stage for series in lines for point in series.points))
    shift = 0.5 / max(1, len(whats) * len(hows))
    for series in lines:
        what, how = whats.index(series.what), hows.index(series.how)
        offset = (what * len(hows) + how - (len(whats) * len(hows) - 1) / 2) * shift
        places = [stages.index(point.stage) + offset for point in series.points]
        means = [point.bounds[0] for point in series.points]
        errors = list(zip(*(point.bar for point in series.points), strict=True))
        look: dict[str, Any] = {"color": nth_colour(what), "linestyle": _DASHES[how % len(_DASHES)]}
        face = nth_colour(what) if how == 0 else "white"
        axes.errorbar(places, means, errors, marker=_MARKERS[how % 3], markersize=3.5, mfc=face, capsize=1.5, **look)
    axes.set_xticks(range(len(stages)), stages)
    axes.set_xlim(-0.5, len(stages) - 0.5)
    room = WIDTH / 3.6 / max(1, len(stages))
    if any(len(stage) * LETTER_WIDTH > room for stage in stages):
        axes.tick_params("x", rotation=20)


def _legend(whats: Sequence[str], hows: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    colours = [Line2D([], [], color=nth_colour(index), linewidth=3, label=what) for index, what in enumerate(whats)]
    dashes = [
        Line2D(
            [], [], color="0.35", linestyle=_DASHES[index % 3], marker=_MARKERS[index % 3], markersize=3.5,
            mfc="0.35" if index == 0 else "white", label=how,
        )
        for index, how in enumerate(hows)
    ]  # fmt: skip
    return colours + dashes


def _fitting(whats: Sequence[str], hows: Sequence[str]) -> int:
    """How many legend entries stand side by side."""
    longest = max(len(name) for name in [*whats, *hows]) * LETTER_WIDTH + 0.55
    return max(1, min(len(whats) + len(hows), int(WIDTH / longest)))

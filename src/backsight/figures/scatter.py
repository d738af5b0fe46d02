"""Points with names: one quantity against another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from backsight.figures.house_style import LETTERS, WIDTH, ink, nth_colour, wrapped
from backsight.figures.lines import MARKERS, one_seed
from backsight.figures.page import Part, legend_above, panel_axes

HEIGHT = 2.6
"""Of a row of panels, in inches."""

LEAST_ACROSS = 0.02
"""What the horizontal axis spans at the least: a smaller difference of a share (AP, accuracy) is not blown up."""


@dataclass(frozen=True)
class ScatterPoint:
    """A point: of which ``kind`` (its colour and mark), what is written at it, how far ``across`` (NaN where that is
    not known: a line then), and how high, by seed."""

    kind: str
    text: str
    across: float
    seeds: Sequence[float]

    @property
    def height(self) -> float:
        """The mean over seeds."""
        return fmean(self.seeds)


def scatter_part(panels: Mapping[tuple[str, str], Sequence[ScatterPoint]], label: str) -> Part:
    """Panels by (title, label of the horizontal axis), two side by side, each mark with its text; small circles are
    seeds.

    Args:
        panels: the points of each, at least one; those of a kind look the same in all panels.
        label: of the vertical axes.
    """
    kinds = list(dict.fromkeys(point.kind for points in panels.values() for point in points))
    columns = min(2, len(panels))
    num_rows = math.ceil(len(panels) / columns)

    def draw(place: Any) -> None:
        spaces = panel_axes(place, len(panels), columns)
        handles: dict[str, Any] = {}
        for axes, ((title, across), points) in zip(spaces, panels.items(), strict=False):
            axes.grid(axis="y")
            axes.set_title(wrapped(title, 0.9 * WIDTH / columns), loc="left", pad=4)
            axes.set(xlabel=across, ylabel=label)
            axes.locator_params(axis="x", nbins=5)
            for point in points:
                handles.setdefault(point.kind, _draw_point(axes, point, kinds.index(point.kind)))
            _make_room(axes, points)
            _write_texts(axes, points, (WIDTH / columns - 0.6) * 72, (HEIGHT - 0.75) * 72)
        seed = one_seed(spaces[0])
        legend_above(place, [*handles.values(), seed.handle], [*handles, seed.name])

    return Part(HEIGHT * num_rows + 0.3, draw)


def _draw_point(axes: Any, point: ScatterPoint, index: int) -> Any:
    colour = nth_colour(index)
    if not math.isfinite(point.across):
        line = axes.axhline(point.height, color=colour, linestyle=(0, (4, 2)), linewidth=1.1)
        axes.annotate(
            f"{point.text} (task not measured)", (1, point.height), (-2, 2), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", fontsize=LETTERS,
        )  # fmt: skip
        return line
    seeds = point.seeds if len(point.seeds) > 1 else []
    axes.scatter([point.across] * len(seeds), seeds, s=9, facecolors="none", edgecolors=colour)
    marker = MARKERS[index % len(MARKERS)]
    return axes.plot(point.across, point.height, color=colour, marker=marker, linestyle="", markersize=5)[0]


def _write_texts(axes: Any, points: Sequence[ScatterPoint], width: float, height: float) -> None:
    """To the right of each point and of those close by, above each other; ``width`` and ``height`` of the axes in
    points."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    placed = [((each.across - left) / (right - left), (each.height - bottom) / (top - bottom) * height, each)
              for each in points if math.isfinite(each.across)]  # fmt: skip
    taken: list[tuple[float, float]] = []
    for across, own, point in sorted(placed, key=lambda each: each[1:2]):
        start = max(x for x, y, _ in placed if 0 <= x - across < 0.1 and abs(y - own) < 3 * LETTERS)
        up = own
        while any(abs(start - x) < 0.25 and abs(up - y) < 1.3 * LETTERS for x, y in taken):
            up += 1
        taken.append((start, up))
        where: Any = {"textcoords": "axes fraction", "fontsize": LETTERS, "va": "center"}
        moved = up > own or start > across
        if moved:  # a thin line says whose it is
            line = {"arrowstyle": "-", "linewidth": 0.5, "color": ink(), "relpos": (0, 0.5), "shrinkB": 2}
            where["arrowprops"] = line
        text_at = (start + (16 if moved else 7) / width, up / height)
        axes.annotate(point.text, (point.across, point.height), text_at, **where)


def _make_room(axes: Any, points: Sequence[ScatterPoint]) -> None:
    """To the right of the points, for what is written there; down to zero where errors can be."""
    known = [point.across for point in points if math.isfinite(point.across)]
    if known:
        width = max(max(known) - min(known), LEAST_ACROSS)
        axes.set_xlim(min(known) - 0.1 * width, max(known) + 0.45 * width)
    else:
        axes.set_xticks([])
    heights = [height for point in points for height in point.seeds]
    axes.set_ylim(0, 1.3 * max(heights))

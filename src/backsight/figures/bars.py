"""Counts as bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backsight.figures.house_style import LETTERS, nth_colour
from backsight.figures.page import Part, legend_above


def bar_part(counts: Mapping[str, Mapping[str, float]], label: str, heading: str = "", height: float = 1.7) -> Part:
    """Bars in groups, each with its number above it.

    Args:
        counts: for every colour (a model, say) the height of each group's bar, by the group's name.
        label: of the vertical axis.
        heading: over all of it.
        height: of the axes, in inches.
    """
    groups = list(dict.fromkeys(group for heights in counts.values() for group in heights))
    width = 0.8 / max(1, len(counts))

    def draw(place: Any) -> None:
        axes = place.subplots()
        axes.grid(axis="y")
        handles = []
        for index, heights in enumerate(counts.values()):
            at = [groups.index(group) + width * (index - (len(counts) - 1) / 2) for group in heights]
            bars = axes.bar(at, list(heights.values()), 0.94 * width, color=nth_colour(index))
            axes.bar_label(bars, [f"{each:.4g}" for each in heights.values()], fontsize=LETTERS, padding=1)
            handles.append(bars[0])
        axes.set_xticks(range(len(groups)), groups)
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.margins(y=0.14)
        axes.set_ylabel(label)
        if len(counts) > 1:
            legend_above(place, handles, list(counts))

    return Part(height + 0.25 * (len(counts) > 1), draw, heading)

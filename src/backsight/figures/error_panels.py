"""Small panels that share one legend: several quantities of the same models over the same stages or layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backsight.figures.house_style import WIDTH, wrapped
from backsight.figures.lines import ErrorPoint, Line, add_errors, name_stages, one_seed, stages_of
from backsight.figures.page import Part, legend_above, panel_axes


@dataclass(frozen=True)
class Panel:
    """One quantity.

    Attributes:
        title: what it is, and how to read it.
        table: for every line (a model, say) its points in the order of the stages.
        baselines: values to compare with by name, drawn as dashed lines.
        from_zero: the axis begins at zero or below.
        top: where the axis ends at least, None for where the values do.
        limits: (low, high) of the vertical axis, in place of these two.
        label: of the vertical axis, where the title does not say what is measured.
        across: of the horizontal axis.
        joined: whether the points of a line are joined; not where their order means nothing.
    """

    title: str
    table: Mapping[str, Sequence[ErrorPoint]]
    baselines: Mapping[str, float] = field(default_factory=dict)
    from_zero: bool = True
    top: float | None = None
    limits: tuple[float, float] | None = None
    label: str = ""
    across: str = ""
    joined: bool = True


def panel_part(panels: Sequence[Panel], columns: int = 3, heading: str = "", height: float = 1.9) -> Part:
    """Every panel with its means, intervals, seeds and baselines; one legend for all of them, where a panel would have
    room, else above.

    Args:
        panels: what to show, from the left and from the top.
        columns: how many panels stand side by side, at most.
        heading: over all of it.
        height: of one row of panels, in inches.
    """
    columns = min(columns, len(panels))
    num_rows = math.ceil(len(panels) / columns)

    def draw(place: Any) -> None:
        spaces = panel_axes(place, len(panels), columns)
        lines: dict[str, Line] = {}
        names = list(dict.fromkeys(name for panel in panels for name in panel.table))
        baselines = list(dict.fromkeys(name for panel in panels for name in panel.baselines))
        for axes, panel in zip(spaces, panels, strict=False):
            for line in _draw_panel(axes, panel, WIDTH / columns, names, baselines):
                lines.setdefault(line.name, line)
        order = [name for name in [*names, *baselines] if name]
        named = [*(lines[name] for name in order), one_seed(spaces[0])]
        handles, texts = [line.handle for line in named], [line.name for line in named]
        if free := spaces[len(panels) :]:
            texts = [wrapped(text, 1.6) for text in texts]
            free[0].legend(handles, texts, loc="upper left", borderaxespad=0)
        else:
            legend_above(place, handles, texts)

    room_for_legend = 0.0 if num_rows * columns > len(panels) else 0.35
    return Part(height * num_rows + room_for_legend, draw, heading)


def _draw_panel(
    axes: Any, panel: Panel, width: float, names: Sequence[str], baseline_names: Sequence[str]
) -> list[Line]:
    axes.grid(axis="y")
    axes.set_title(wrapped(panel.title, 0.87 * (width - 0.45)), loc="left", pad=4)
    axes.set_ylabel(panel.label, labelpad=3)
    axes.set_xlabel(panel.across)
    lines = add_errors(axes, panel.table, panel.baselines, panel.from_zero, names, baseline_names)
    for line in lines if not panel.joined else ():
        getattr(line.handle, "lines", [line.handle])[0].set_linestyle("none")
    if not any(math.isfinite(point.bounds[0]) for points in panel.table.values() for point in points):
        axes.text(0.5, 0.5, "no image has an answer", transform=axes.transAxes, ha="center", va="center")
    stages = stages_of(panel.table)
    axes.set_xlim(-0.5, max(1, len(stages)) - 0.5)
    if panel.limits is not None:
        axes.set_ylim(*panel.limits)
    elif panel.top is not None:
        axes.set_ylim(top=max(panel.top, axes.get_ylim()[1]))
    name_stages(axes, stages, 0.85 * width / max(1, len(stages)))
    return lines

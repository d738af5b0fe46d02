"""Numbers as lines: error per stage, losses over training."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backsight.figures.house_style import LETTER_WIDTH, PALETTE, WIDTH, ink, nth_colour, style, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P")
_LINE_STYLES = ("-", (0, (6, 1.5)), (0, (3, 1, 1, 1)))
_BASELINES = ((0, (4, 2)), (0, (1, 1.5)), (0, (7, 2, 1, 2)))
_BESIDE = 0.09  # from a mean to its seeds, inches


@dataclass(frozen=True)
class ErrorPoint:
    """The error at one stage: of every seed (one at least), and (mean, low, high) of its 95 % interval if known; a
    single value has none (low and high are NaN)."""

    stage: str
    seeds: Sequence[float]
    interval: tuple[float, float, float] | None = None

    @property
    def bounds(self) -> tuple[float, float, float]:
        """(mean, low, high): of the interval, or three times the mean of the seeds where there is none."""
        mean = math.fsum(self.seeds) / len(self.seeds)
        return self.interval if self.interval and math.isfinite(self.interval[1]) else (mean, mean, mean)

    @property
    def bar(self) -> tuple[float, float]:
        """How far the interval reaches below and above the mean; NaN, which draws no bar, where there is none."""
        mean, low, high = self.bounds
        return (max(0.0, mean - low), max(0.0, high - mean)) if low < high else (math.nan, math.nan)


@dataclass(frozen=True)
class Line:
    """A line as the legend needs it; ``end`` is the height at which it ends."""

    end: float
    handle: Any
    name: str


def error_bars(
    table: Mapping[str, Sequence[ErrorPoint]],
    baselines: Mapping[str, float] | None = None,
    label: str = "mean squared error",
    size: tuple[float, float] = (WIDTH, 2.6),
    dark: bool = False,
) -> Figure:
    """Error per stage: the mean with its interval, every seed's own point, baselines as dashed lines.

    Args:
        table: For every line (a model, say) its points in the order of the stages.
        baselines: Errors to compare with by name, such as that of the data's mean image.
        label: Of the vertical axis: what is measured, in which unit.
        size: (width, height) in inches.
        dark: For a dark page.
    """
    stages = stages_of(table)
    with style(dark):
        figure, axes = _panel(size, xlim=(-0.5, max(1, len(stages)) - 0.5), ylabel=label)
        lines = add_errors(axes, table, baselines)
        name_stages(axes, stages, size[0] / max(1, len(stages)))
        add_legend(figure, lines, [one_seed(axes)])
    return figure


def stages_of(table: Mapping[str, Sequence[ErrorPoint]]) -> list[str]:
    """Every stage of :func:`error_bars`' table, in order of appearance."""
    return list(dict.fromkeys(point.stage for points in table.values() for point in points))


def add_errors(
    axes: Any,
    table: Mapping[str, Sequence[ErrorPoint]],
    baselines: Mapping[str, float] | None = None,
    from_zero: bool = True,
    names: Sequence[str] = (),
    baseline_names: Sequence[str] = (),
) -> list[Line]:
    """Draw the lines and baselines of :func:`error_bars` into ``axes``, the stages at 0, 1, ...; gives its legend.

    ``names`` and ``baseline_names`` are all lines and baselines under one legend, where several axes share it:
    what has one name looks the same in all.
    """
    stages = stages_of(table)
    looks = list(dict.fromkeys([*names, *table]))
    dashes = list(dict.fromkeys([*baseline_names, *(baselines or {})]))
    shifts = [0.5 * (index - (len(table) - 1) / 2) / len(table) for index in range(len(table))]
    lines: list[Line] = []
    for shift, (name, points) in zip(shifts, table.items(), strict=True):
        places = [stages.index(point.stage) + shift for point in points]
        lines.append(_add_points(axes, looks.index(name), name, points, places))
    for name, value in (baselines or {}).items():
        dash = _BASELINES[dashes.index(name) % len(_BASELINES)]
        line = axes.axhline(value, linestyle=dash, color=ink(), linewidth=1.1)
        lines.append(Line(value, line, name))
    errors = [error for points in table.values() for point in points for error in (*point.seeds, *point.bounds)]
    if from_zero:  # with room above, too: matplotlib leaves a twentieth of what the values span, not of the axis
        known = [each for each in (0.0, *errors, *(baselines or {}).values()) if math.isfinite(each)]
        bottom = 1.05 * min(known)
        axes.set_ylim(bottom, max(axes.get_ylim()[1], max(known) + 0.05 * (max(known) - bottom)))
    return lines


def one_seed(axes: Any) -> Line:
    """What the legend says of the small circles."""
    handle = axes.scatter([], [], s=9, facecolors="none", edgecolors=ink(), linewidths=0.8)
    return Line(-math.inf, handle, "one seed")


def _panel(size: tuple[float, float], **settings: Any) -> tuple[Figure, Any]:
    """A figure with one pair of axes, and lines to read the heights by."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(**settings)
    axes.grid(axis="y")
    return figure, axes


def _add_points(axes: Any, index: int, name: str, points: Sequence[ErrorPoint], places: Sequence[float]) -> Line:
    """One line of errors; every seed's own point stands a little to its right."""
    from matplotlib.transforms import ScaledTranslation

    colour, marker = nth_colour(index), MARKERS[index % len(MARKERS)]
    means = [point.bounds[0] for point in points]
    yerr = list(zip(*(point.bar for point in points), strict=True))
    handle = axes.errorbar(places, means, yerr=yerr, color=colour, marker=marker, markersize=4, capsize=2.5)
    beside = axes.transData + ScaledTranslation(_BESIDE, 0, axes.figure.dpi_scale_trans)
    several = [(place, point.seeds) for place, point in zip(places, points, strict=True) if len(point.seeds) > 1]
    dots = [(place, error) for place, errors in several for error in errors]
    look: dict[str, Any] = {"s": 9, "facecolors": "none", "edgecolors": colour, "linewidths": 0.8}
    axes.scatter([place for place, _ in dots], [error for _, error in dots], transform=beside, **look)
    return Line(means[-1] if means else -math.inf, handle, name)


def name_stages(axes: Any, stages: Sequence[str], room: float) -> None:
    """Write the stages under the axis, each in ``room`` inches; slanted where a word does not fit."""
    fits = all(len(word) * LETTER_WIDTH < 0.8 * room for stage in stages for word in stage.split())
    if fits:
        axes.set_xticks(range(len(stages)), [wrapped(stage, 0.8 * room) for stage in stages])
    else:
        axes.set_xticks(range(len(stages)), stages, rotation=40, ha="right", rotation_mode="anchor")


def add_legend(figure: Figure, lines: Sequence[Line], after: Sequence[Line] = ()) -> None:
    """In the order in which the lines end, from the top: beside a wide figure, over a narrow one."""
    named = [line for line in [*sorted(lines, key=lambda line: -line.end), *after] if line.name]
    handles, names = [line.handle for line in named], [line.name for line in named]
    if figure.get_figwidth() >= WIDTH - 1:
        figure.legend(handles, [textwrap.fill(name, 24) for name in names], loc="outside right upper")
    else:
        lengths = [LETTER_WIDTH * len(name) + 0.5 for name in names]
        in_one_row = sum(lengths) <= figure.get_figwidth()
        columns = len(names) if in_one_row else int(figure.get_figwidth() / max(lengths))
        figure.legend(handles, names, loc="outside upper left", ncols=max(1, columns), columnspacing=1.2)


def curves(
    metrics: Sequence[Mapping[str, Any]], size: tuple[float, float] = (WIDTH, 2.6), dark: bool = False
) -> Figure:
    """Losses over the steps of training, on a log scale: a colour for every inverse, a line for every seed.

    Args:
        metrics: One record for each measurement: ``step``, ``entry`` (which inverse), ``seed``, ``loss``. Records
            whose loss is None, not finite or not above zero are left out.
        size: (width, height) in inches.
        dark: For a dark page.
    """
    losses: dict[str, dict[Any, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for record in metrics:
        if record["loss"] is not None and 0 < record["loss"] < math.inf:
            losses[record["entry"]][record["seed"]].append((record["step"], record["loss"]))
    with style(dark):
        figure, axes = _panel(size, yscale="log", xlabel="step", ylabel="training loss")
        lines: list[Line] = []
        for index, (entry, seeds) in enumerate(losses.items()):
            dashes = _LINE_STYLES[index // len(PALETTE) % len(_LINE_STYLES)]
            look = {"color": nth_colour(index), "linestyle": dashes, "linewidth": 0.9}
            drawn = [axes.plot(*zip(*sorted(line), strict=True), **look)[0] for line in seeds.values()]
            end = math.fsum(max(line)[1] for line in seeds.values()) / len(seeds)
            lines.append(Line(end, drawn[0], entry))
        add_legend(figure, lines)
    return figure

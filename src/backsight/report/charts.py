"""The figures of a report: drawn once for a light page and once for a dark one, with the values to be read off them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from backsight.figures import ErrorPoint, curves, error_bars, to_svg
from backsight.report.numbers import entry_title, format_number, known
from backsight.report.results import Bounds, Results, StageErrors
from backsight.report.views import data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (3.9, 2.5)
"""Width and height in inches: two stand side by side on a wide screen, one fits a narrow one."""

MOST_BANDS = 40
"""Of one chart: narrower ones are hard to point at."""


@dataclass(frozen=True)
class Reading:
    """What a chart says at ``at`` on its horizontal axis, in lines of text."""

    at: float
    text: str


@dataclass(frozen=True)
class Band:
    """A part of a chart to point at: its place in percent of the picture, and its text."""

    left: float
    width: float
    top: float
    height: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A figure for a light page and one for a dark page, as data URIs, with its words and its values."""

    light: str
    dark: str
    text: str
    caption: str
    bands: tuple[Band, ...]


def error_charts(results: Results) -> list[Chart]:
    """Image error and layer error per stage, whichever was measured."""
    image = [_point(stage, stage.metrics.get("mse", []), stage.intervals.get("mse")) for stage in results.stages]
    layer = [_point(stage, stage.layer_error or []) for stage in results.stages]
    mean_image = known([results.mean_image.get("mse")])
    charts = [
        _error_chart(image, {"mean image": mean_image[0]} if mean_image else {}, "MSE of the image, RGB in [0, 1]"),
        _error_chart(layer, {"the target's mean": 1.0}, "layer error, in the target's variance"),
    ]
    return [chart for chart in charts if chart]


def training_chart(results: Results) -> Chart | None:
    """The losses over the steps; None where nothing was recorded."""
    records = [{**record, "entry": entry_title(record["entry"])} for record in results.curves]
    if not records:
        return None
    return _chart(
        lambda dark: curves(records, size=SIZE, dark=dark),
        _losses(records),
        text=f"Training loss over steps of {', '.join(dict.fromkeys(record['entry'] for record in records))}",
        caption="Training loss of every inverse, one line per seed, each in the space of its own target.",
    )


def _point(stage: StageErrors, values: Sequence[float | None], interval: Bounds | None = None) -> ErrorPoint | None:
    """The stage as a figure needs it; None when nothing of it is known."""
    seeds = known(values)
    bounds = known(interval or ())
    whole = (bounds[0], bounds[1], bounds[2]) if len(bounds) == 3 else None
    return ErrorPoint(entry_title(stage.entry), seeds, whole) if seeds else None


def _error_chart(points: Sequence[ErrorPoint | None], baselines: Mapping[str, float], label: str) -> Chart | None:
    found = [point for point in points if point]
    if not found:
        return None
    name = "mean, 95 % interval" if any(point.interval for point in found) else "mean of seeds"
    said = ", ".join(f"{point.stage} {format_number(point.bounds[0])}" for point in found)
    against = "".join(f"; {name} {format_number(value)}" for name, value in baselines.items())
    return _chart(
        lambda dark: error_bars({name: found}, baselines, label, size=SIZE, dark=dark),
        [Reading(place, _told(point, baselines)) for place, point in enumerate(found)],
        text=f"{label}, per stage: {said}{against}",
        caption=f"{label[0].upper()}{label[1:]}, per stage. Lower is better.",
    )


def _told(point: ErrorPoint, baselines: Mapping[str, float]) -> str:
    """A point in words: its value, its interval, each seed, and what to compare it with."""
    mean, low, high = map(format_number, point.bounds)
    lines = [f"{point.stage}: {mean}"]
    lines += [f"95 % interval {low} to {high}"] if point.interval else []
    lines += [f"seeds {', '.join(map(format_number, point.seeds))}"] if len(point.seeds) > 1 else []
    return "\n".join([*lines, *(f"{name} {format_number(value)}" for name, value in baselines.items())])


def _losses(records: Sequence[Mapping[str, Any]]) -> list[Reading]:
    """The mean loss over seeds of every inverse, at some of the steps, the largest first."""
    losses: dict[int, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        losses[record["step"]][record["entry"]].append(record["loss"])
    steps = sorted(losses)
    chosen = steps[:: math.ceil(len(steps) / MOST_BANDS)]
    return [Reading(step, "\n".join([f"step {step:,}", *_by_size(losses[step])])) for step in chosen]


def _by_size(losses: Mapping[str, Sequence[float | None]]) -> list[str]:
    means = {entry: math.fsum(known(values)) / len(known(values)) for entry, values in losses.items() if known(values)}
    return [f"{entry} {format_number(mean)}" for entry, mean in sorted(means.items(), key=lambda each: -each[1])]


def _chart(draw: Callable[[bool], Figure], readings: Sequence[Reading], text: str, caption: str) -> Chart:
    figure = draw(False)
    light = to_svg(figure)
    images = [data_uri(content, "image/svg+xml") for content in (light, to_svg(draw(True)))]
    return Chart(images[0], images[1], text, caption, _bands(figure, readings))


def _bands(figure: Figure, readings: Sequence[Reading]) -> tuple[Band, ...]:
    """The places of the readings in a figure that has been saved: its layout is settled then, and not before."""
    axes = figure.axes[0]
    panel = axes.get_position()
    scaled = axes.transData.transform([(reading.at, axes.get_ylim()[1]) for reading in readings])
    places = [float(place) for place, _ in figure.transFigure.inverted().transform(scaled)]
    middles = [(one + other) / 2 for one, other in pairwise(places)]
    starts, ends = [panel.x0, *middles], [*middles, panel.x1]
    top, high = _percent(1 - panel.y1), _percent(panel.height)
    return tuple(
        Band(_percent(start), _percent(end - start), top, high, reading.text)
        for start, end, reading in zip(starts, ends, readings, strict=True)
    )


def _percent(share: float) -> float:
    return round(100 * share, 2)

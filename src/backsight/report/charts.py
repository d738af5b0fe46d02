"""The figures of a report: drawn once for a light page and once for a dark one, with the values to be read off them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from backsight.core import entry_title
from backsight.figures import ErrorPoint, curves, error_bars, to_svg
from backsight.report.views import data_uri, format_number
from backsight.results import LAYER_ERROR, MEAN_IMAGE, TRAINING_LOSS, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (3.9, 2.5)
"""Width and height in inches: two stand side by side on a wide screen, one fits a narrow one."""

MOST_BANDS = 40
"""Of one chart: narrower ones are hard to point at."""


Value = tuple[float, str]
"""What a chart says at a place on its horizontal axis, in lines of text."""


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


def error_charts(result: Result, intervals: bool = True) -> list[Chart]:
    """Image error and layer error per stage, whichever was measured, with or without their ``intervals``."""
    guess = [each.mean() for each in result.select(stage=MEAN_IMAGE, metric="mse") if math.isfinite(each.mean())]
    baselines = {"mean image": guess[0]} if guess else {}
    charts = [
        _error_chart(_points(result, "mse", intervals), baselines, "MSE of the image, RGB in [0, 1]"),
        _error_chart(
            _points(result, LAYER_ERROR, intervals), {"the target's mean": 1.0}, "layer error, in the target's variance"
        ),
    ]
    return [chart for chart in charts if chart]


def training_chart(result: Result) -> Chart | None:
    """The losses over the steps; None where nothing was recorded."""
    records = [
        {"step": each.labels["step"], "entry": entry_title(str(each.labels["stage"])), "seed": seed, "loss": loss}
        for each in result.select(metric=TRAINING_LOSS)
        for seed, loss in enumerate(each.values[:, 0].tolist())
        if math.isfinite(loss)
    ]
    if not records:
        return None
    return _chart(
        lambda dark: curves(records, size=SIZE, dark=dark),
        _losses(records),
        text=f"Training loss over steps of {', '.join(dict.fromkeys(record['entry'] for record in records))}",
        caption="Training loss of every inverse, one line per seed, each in the space of its own target.",
    )


def _points(result: Result, metric: str, intervals: bool) -> list[ErrorPoint]:
    """A point for every entry of which the metric is known."""
    points = []
    for each in result.select(metric=metric):
        interval = each.interval()
        if each.labels["stage"] != MEAN_IMAGE and math.isfinite(interval.mean):
            bounds = interval if intervals and math.isfinite(interval.low) else None
            points.append(ErrorPoint(entry_title(str(each.labels["stage"])), each.by_seed(), bounds))
    return points


def _error_chart(points: Sequence[ErrorPoint], baselines: Mapping[str, float], label: str) -> Chart | None:
    if not points:
        return None
    name = "mean, 95 % interval" if any(point.interval for point in points) else "mean of seeds"
    values = ", ".join(f"{point.stage} {format_number(point.bounds[0])}" for point in points)
    against = "".join(f"; {name} {format_number(value)}" for name, value in baselines.items())
    return _chart(
        lambda dark: error_bars({name: points}, baselines, label, size=SIZE, dark=dark),
        [(place, _describe(point, baselines)) for place, point in enumerate(points)],
        text=f"{label}, per stage: {values}{against}",
        caption=f"{label[0].upper()}{label[1:]}, per stage. Lower is better.",
    )


def _describe(point: ErrorPoint, baselines: Mapping[str, float]) -> str:
    """A point in words: its value, its interval, each seed, and what to compare it with."""
    mean, low, high = map(format_number, point.bounds)
    lines = [f"{point.stage}: {mean}"]
    lines += [f"95 % interval {low} to {high}"] if point.interval else []
    lines += [f"seeds {', '.join(map(format_number, point.seeds))}"] if len(point.seeds) > 1 else []
    return "\n".join([*lines, *(f"{name} {format_number(value)}" for name, value in baselines.items())])


def _losses(records: Sequence[Mapping[str, Any]]) -> list[Value]:
    """The mean loss over seeds of every inverse, at some of the steps, the largest first."""
    losses: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        losses[record["step"]][record["entry"]].append(record["loss"])
    steps = sorted(losses)
    chosen = steps[:: math.ceil(len(steps) / MOST_BANDS)]
    return [(step, "\n".join([f"step {step:,}", *_by_size(losses[step])])) for step in chosen]


def _by_size(losses: Mapping[str, Sequence[float]]) -> list[str]:
    means = {entry: math.fsum(values) / len(values) for entry, values in losses.items()}
    return [f"{entry} {format_number(mean)}" for entry, mean in sorted(means.items(), key=lambda each: -each[1])]


def _chart(draw: Callable[[bool], Figure], values: Sequence[Value], text: str, caption: str) -> Chart:
    figure = draw(False)
    light = to_svg(figure)
    images = [data_uri(content, "image/svg+xml") for content in (light, to_svg(draw(True)))]
    return Chart(images[0], images[1], text, caption, _bands(figure, values))


def _bands(figure: Figure, values: Sequence[Value]) -> tuple[Band, ...]:
    """The places of the values in a figure that has been saved: its layout is settled then, and not before."""
    axes = figure.axes[0]
    panel = axes.get_position()
    scaled = axes.transData.transform([(at, axes.get_ylim()[1]) for at, _ in values])
    places = [float(place) for place, _ in figure.transFigure.inverted().transform(scaled)]
    middles = [(one + other) / 2 for one, other in pairwise(places)]
    starts, ends = [panel.x0, *middles], [*middles, panel.x1]
    top, high = _percent(1 - panel.y1), _percent(panel.height)
    return tuple(
        Band(_percent(start), _percent(end - start), top, high, text)
        for start, end, (_, text) in zip(starts, ends, values, strict=True)
    )


def _percent(share: float) -> float:
    return round(100 * share, 2)

"""Results -> one HTML page that needs nothing but itself: no request leaves it, not even for a font."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from backsight.core import split_entry
from backsight.figures import ErrorPoint, curves, error_bars, to_svg
from backsight.files import write_text
from backsight.report.results import Bounds, Results, StageErrors
from backsight.report.views import build_gallery, data_uri, spread_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHART = (3.9, 2.5)
"""Width and height in inches: two stand side by side on a wide screen, one fits a narrow one."""


@dataclass(frozen=True)
class Measure:
    """A column of the error table: its key in the results, its title, its unit, and which way is better."""

    key: str
    title: str
    unit: str
    better: str


LAYER = Measure("layer", "Layer error", "in the target's variance", "lower is better")
MEASURES = (
    Measure("mse", "MSE", "RGB in [0, 1]", "lower is better"),
    Measure("psnr", "PSNR", "dB", "higher is better"),
    Measure("ssim", "SSIM", "at most 1", "higher is better"),
)


@dataclass(frozen=True)
class Chart:
    """A figure for a light page and one for a dark page, as data URIs, with its words."""

    light: str
    dark: str
    text: str
    caption: str


@dataclass(frozen=True)
class TableCell:
    """The number to sort by, its interval, and every seed's own."""

    mean: float | None
    interval: Bounds | None
    seeds: tuple[float | None, ...]


def write_report(results: Results, path: str | Path, folder: str | Path | None = None) -> Path:
    """Write the page of ``results`` to ``path``, whole.

    Args:
        results: What to show.
        path: Of the HTML file.
        folder: Where the pictures' paths start; the folder of ``path`` when not given.

    Returns:
        ``path``.

    Raises:
        UserError: a picture is missing or lies outside ``folder``.
    """
    path = Path(path)
    gallery = build_gallery(results.pictures, Path(folder) if folder else path.parent)
    measures = [measure for measure in MEASURES if any(measure.key in stage.metrics for stage in results.stages)]
    measures += [LAYER] if any(stage.layer_error for stage in results.stages) else []
    page = (
        environment()
        .get_template("page.html")
        .render(
            results=results,
            gallery=gallery,
            colours=spread_colours(9),
            measures=measures,
            table=_table(results, measures),
            charts=_error_charts(results),
            training=_training_chart(results),
        )
    )
    return write_text(path, page)


def environment() -> Environment:
    """Jinja with the templates of this folder and the filters that they share."""
    environment = Environment(
        loader=PackageLoader("backsight", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, entry=entry_title, digest=script_digest)
    return environment


def format_number(value: str | int | float | None) -> str:
    """Three digits of a fraction, zeros too, all of a whole number, a dash for what is not known, text as it is."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".removesuffix(".")
    return f"{value:,}" if isinstance(value, int) else value


def entry_title(entry: str) -> str:
    """``backbone@local`` -> ``backbone (local)``."""
    stage, variant = split_entry(entry)
    return f"{stage} ({variant})" if variant else stage


def script_digest(script: Markup) -> str:
    """What the page's content policy calls its own script by, so that no other script runs."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _table(results: Results, measures: list[Measure]) -> list[tuple[str, bool, list[TableCell]]]:
    """(name, whether it is the mean image, cells) for every stage, then for the mean image."""
    rows = [(entry_title(stage.entry), False, [_cell(stage, m) for m in measures]) for stage in results.stages]
    if results.mean_image:
        cells = [TableCell(results.mean_image.get(measure.key), None, ()) for measure in measures]
        rows.append(("mean image", True, cells))
    return rows


def _cell(stage: StageErrors, measure: Measure) -> TableCell:
    if measure is LAYER:
        return TableCell(_mean(stage.layer_error or []), None, tuple(stage.layer_error or ()))
    seeds = tuple(stage.metrics.get(measure.key, ()))
    interval = stage.intervals.get(measure.key)
    return TableCell(interval[0] if interval else _mean(seeds), interval, seeds)


def _mean(values: tuple[float | None, ...] | list[float | None]) -> float | None:
    known = _known(values)
    return math.fsum(known) / len(known) if known else None


def _known(values: tuple[float | None, ...] | list[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _error_charts(results: Results) -> list[Chart]:
    """Image error and layer error per stage, whichever was measured."""
    image = [_point(stage, stage.metrics.get("mse", []), stage.intervals.get("mse")) for stage in results.stages]
    layer = [_point(stage, stage.layer_error or []) for stage in results.stages]
    mean_image = _known([results.mean_image.get("mse")])
    charts = [
        _error_chart(image, {"mean image": mean_image[0]} if mean_image else {}, "MSE of the image, RGB in [0, 1]"),
        _error_chart(layer, {"the target's mean": 1.0}, "layer error, in the target's variance"),
    ]
    return [chart for chart in charts if chart]


def _point(stage: StageErrors, values: list[float | None], interval: Bounds | None = None) -> ErrorPoint | None:
    """The stage as a figure needs it; None when nothing of it is known."""
    seeds = _known(values)
    bounds = _known(interval or ())
    known = (bounds[0], bounds[1], bounds[2]) if len(bounds) == 3 else None
    return ErrorPoint(entry_title(stage.entry), seeds, known) if seeds else None


def _error_chart(points: list[ErrorPoint | None], baselines: Mapping[str, float], label: str) -> Chart | None:
    known = [point for point in points if point]
    if not known:
        return None
    name = "mean, 95 % interval" if any(point.interval for point in known) else "mean of seeds"
    said = ", ".join(f"{point.stage} {format_number(point.bounds[0])}" for point in known)
    against = "".join(f"; {name} {format_number(value)}" for name, value in baselines.items())
    return _chart(
        lambda dark: error_bars({name: known}, baselines, label, size=_CHART, dark=dark),
        text=f"{label}, per stage: {said}{against}",
        caption=f"{label[0].upper()}{label[1:]}, per stage. Lower is better.",
    )


def _training_chart(results: Results) -> Chart | None:
    records = [{**record, "entry": entry_title(record["entry"])} for record in results.curves]
    if not records:
        return None
    return _chart(
        lambda dark: curves(records, size=_CHART, dark=dark),
        text=f"Training loss over steps of {', '.join(dict.fromkeys(record['entry'] for record in records))}",
        caption="Training loss of every inverse, one line per seed, each in the space of its own target.",
    )


def _chart(draw: Callable[[bool], Figure], text: str, caption: str) -> Chart:
    light, dark = (data_uri(to_svg(draw(dark)), "image/svg+xml") for dark in (False, True))
    return Chart(light, dark, text, caption)

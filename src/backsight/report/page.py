"""Results -> one HTML page that needs nothing but itself: no request leaves it, not even for a font."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from backsight.io import write_text
from backsight.report.charts import error_charts, training_chart
from backsight.report.numbers import entry_title, format_bounds, format_effect, format_number, known, mean
from backsight.report.results import Bounds, Results, StageErrors
from backsight.report.views import build_gallery, spread_colours


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
class TableCell:
    """The number to sort by, its interval, every seed's own, and what a pointer on it is told."""

    mean: float | None
    interval: Bounds | None = None
    seeds: tuple[float | None, ...] = ()
    told: str = ""


@dataclass(frozen=True)
class TableRow:
    """The errors of one ``entry``; of the mean image where that is "". ``share`` is the part of the mean image's MSE
    that is left, in percent."""

    name: str
    entry: str
    cells: tuple[TableCell, ...]
    share: float | None = None


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
    measures = [measure for measure in MEASURES if any(measure.key in stage.metrics for stage in results.stages)]
    measures += [LAYER] if any(stage.layer_error for stage in results.stages) else []
    page = (
        environment()
        .get_template("page.html")
        .render(
            results=results,
            gallery=build_gallery(results.pictures, Path(folder) if folder else path.parent),
            colours=spread_colours(9),
            measures=measures,
            table=_table(results, measures),
            charts=error_charts(results),
            training=training_chart(results),
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
    environment.filters.update(
        number=format_number,
        effect=format_effect,
        bounds=lambda part: format_bounds(part.low, part.high),
        entry=entry_title,
        digest=script_digest,
    )
    return environment


def script_digest(script: Markup) -> str:
    """What the page's content policy calls its own script by, so that no other script runs."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _table(results: Results, measures: Sequence[Measure]) -> list[TableRow]:
    """A row for every stage, then one for the mean image."""
    rows = [_row(stage, measures, results) for stage in results.stages]
    if results.mean_image:
        cells = tuple(TableCell(results.mean_image.get(measure.key)) for measure in measures)
        rows.append(TableRow("mean image", "", cells))
    return rows


def _row(stage: StageErrors, measures: Sequence[Measure], results: Results) -> TableRow:
    cells = tuple(_cell(stage, measure, results.mean_image.get(measure.key)) for measure in measures)
    share = _share(mean(stage.metrics.get("mse", ())), results.mean_image.get("mse"))
    return TableRow(entry_title(stage.entry), stage.entry, cells, share)


def _share(error: float | None, guess: float | None) -> float | None:
    found = known([error, guess])
    return 100 * found[0] / found[1] if len(found) == 2 and found[1] > 0 else None


def _cell(stage: StageErrors, measure: Measure, guess: float | None) -> TableCell:
    """``guess`` is what the mean image has in this column."""
    seeds = tuple((stage.layer_error if measure is LAYER else stage.metrics.get(measure.key)) or ())
    interval = None if measure is LAYER else stage.intervals.get(measure.key)
    value = interval[0] if interval else mean(seeds)
    return TableCell(value, interval, seeds, _told(stage.entry, measure, value, interval, guess))


def _told(entry: str, measure: Measure, value: float | None, interval: Bounds | None, guess: float | None) -> str:
    """A cell in words, with the digits that the table leaves out."""
    if not known([value]):
        return ""
    lines = [f"{entry_title(entry)}: {measure.title} {value:.6g}", f"{measure.unit}; {measure.better}"]
    bounds = known(interval or ())
    lines += [f"95 % interval {bounds[1]:.6g} to {bounds[2]:.6g}"] if len(bounds) == 3 else []
    return "\n".join([*lines, *(f"mean image {each:.6g}" for each in known([guess]))])

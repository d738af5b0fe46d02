"""A result with pictures -> one HTML page that needs nothing but itself: no request leaves it, not even for a font."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from backsight.core import entry_title
from backsight.error_table import Column, Row, error_table
from backsight.io import write_text
from backsight.report.charts import error_charts, training_chart
from backsight.report.views import (
    build_gallery,
    format_bounds,
    format_effect,
    format_number,
    spread_colours,
)
from backsight.results import MEAN_IMAGE, Measurement, Result


@dataclass(frozen=True)
class Cell:
    """A cell of the table of errors: the number to sort by, its interval, the mean of every seed, and a ``hint`` with
    the digits that the table leaves out."""

    mean: float
    interval: tuple[float, float] | None
    seeds: list[float]
    hint: str


def write_report(result: Result, path: str | Path) -> Path:
    """Write the page of ``result``, whole: its pictures, the table of errors, and the card of its model.

    Args:
        result: of one model, as ``backsight reconstruct`` makes it.
        path: of the HTML file.

    Returns:
        ``path``.

    Raises:
        UserError: its pictures do not fit each other.
    """
    own_pictures = bool(result.subjects[0].get("own_pictures"))
    columns, rows = error_table(result)
    guesses = next((row.cells for row in rows if row.stage == MEAN_IMAGE), [None] * len(columns))
    template = environment().get_template("page.html")
    page = template.render(
        result=result,
        card=result.subjects[0],
        own_pictures=own_pictures,
        facts=list(_facts(result)),
        gallery=build_gallery(result.pictures),
        colours=spread_colours(9),
        columns=columns,
        table=[
            (row, [_cell(row, *each, not own_pictures) for each in zip(columns, row.cells, guesses, strict=True)])
            for row in rows
        ],
        charts=error_charts(result, intervals=not own_pictures),
        training=training_chart(result),
    )
    return write_text(path, page)


def environment() -> Environment:
    """Jinja with the templates of the pages and the filters that they share."""
    environment = Environment(
        loader=PackageLoader("backsight", "report/templates"),
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


def _cell(
    row: Row, column: Column, measurement: Measurement | None, guess: Measurement | None, intervals: bool
) -> Cell | None:
    """``guess`` is what the mean image has in this column; ``intervals`` are left out of a user's own few pictures."""
    if measurement is None:
        return None
    mean, low, high = measurement.interval()
    if not math.isfinite(mean) or row.stage == MEAN_IMAGE:
        return Cell(mean, None, [], "")
    lines = [f"{entry_title(row.stage)}: {column.title} {mean:.6g}", f"{column.unit}; {column.better}"]
    known = intervals and math.isfinite(low)
    lines += [f"95 % interval {low:.6g} to {high:.6g}"] if known else []
    lines += [f"mean image {guess.mean():.6g}"] if guess is not None and math.isfinite(guess.mean()) else []
    return Cell(mean, (low, high) if known else None, measurement.by_seed(), "\n".join(lines))


def _facts(result: Result) -> Iterator[tuple[str, Any]]:
    """What the page says of the model, the data and the training, each once."""
    card = dict(result.subjects[0])
    training, figures = card.pop("training", {}), card.pop("figures", {})
    for name in ("weak", "own_pictures"):
        card.pop(name, None)
    card |= {"test scenes, " + name: value for name, value in figures.items()}
    for name, value in {**card, **{name: value for name, value in training.items() if name not in card}}.items():
        if value not in (None, ""):
            yield name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list | tuple) else value

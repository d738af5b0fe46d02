"""The table of a chain's errors by stage, as the run's card, the model card on the hub and the report show it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from backsight.results import LAYER_ERROR, MEAN_IMAGE, Measurement, Result


@dataclass(frozen=True)
class Column:
    """A column of the table of errors: its metric, its title, its unit, and which way is better."""

    metric: str
    title: str
    unit: str
    better: str

    @property
    def name(self) -> str:
        """The title with a unit that has to stand beside the numbers."""
        return f"{self.title} (dB)" if self.unit == "dB" else self.title


COLUMNS = (
    Column("mse", "MSE", "RGB in [0, 1]", "lower is better"),
    Column("psnr", "PSNR", "dB", "higher is better"),
    Column("ssim", "SSIM", "at most 1", "higher is better"),
    Column(LAYER_ERROR, "Layer error", "in the target's variance", "lower is better"),
)


@dataclass(frozen=True)
class Row:
    """A line of the table: an entry, or the mean image; its measurement for each column, None where there is none.
    ``share`` is its MSE in units of the mean image's."""

    stage: str
    cells: Sequence[Measurement | None]
    share: float | None


def error_table(result: Result) -> tuple[list[Column], list[Row]]:
    """The columns that were measured, and a row for each entry of the first model, then one for the mean image."""
    columns = [column for column in COLUMNS if result.select(metric=column.metric)]
    named = {(each.labels.get("stage"), each.labels["metric"]): each for each in result.measurements}
    stages = [stage for stage in result.values_of("stage") if any((stage, each.metric) in named for each in columns)]
    guess = named[MEAN_IMAGE, "mse"].mean() if (MEAN_IMAGE, "mse") in named else math.nan
    rows = []
    for stage in sorted(stages, key=lambda stage: stage == MEAN_IMAGE):
        cells = [named.get((stage, column.metric)) for column in columns]
        share = named[stage, "mse"].mean() / guess if (stage, "mse") in named and guess > 0 else math.nan
        rows.append(Row(stage, cells, share if math.isfinite(share) else None))
    return columns, rows


def markdown_table(result: Result) -> str:
    """The section of a card that has the table of errors, with its intervals."""
    card, (columns, rows) = result.subjects[0], error_table(result)
    lines = [
        f"## Errors on {card['num_images']} test images",
        "",
        f"Images are {card['value_range']}. Means over {len(card['seeds'])} seeds, with 95 % intervals over images and",
        "seeds. The mean image of the training data is what an inverse that knows nothing would return; the second",
        "column is the MSE in units of its MSE. *Layer error* is that of the stage's own inverse on true features, in",
        "units of the variance of its target.",
        "",
        f"| from | of the mean image's | {' | '.join(column.name for column in columns)} |",
        "| --- |" + " --- |" * (len(columns) + 1),
    ]
    for row in rows:
        name = f"*{row.stage}*" if row.stage == MEAN_IMAGE else row.stage
        share = "" if row.share is None else f"{row.share:.2f}"
        cells = ["" if cell is None else _cell(cell, row.stage != MEAN_IMAGE) for cell in row.cells]
        lines.append(f"| {name} | {share} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(measurement: Measurement, with_interval: bool) -> str:
    mean, low, high = measurement.interval()
    return f"{mean:.4g} ({low:.4g} to {high:.4g})" if with_interval and math.isfinite(low) else f"{mean:.4g}"

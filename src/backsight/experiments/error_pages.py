"""The figure of :mod:`~backsight.experiments.detection_errors`: counts, lines over the stages, and cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from backsight.core import IMAGE
from backsight.experiments.error_gallery import INPUT, RECONSTRUCTION, WITHOUT
from backsight.experiments.model_lines import title_of
from backsight.experiments.shown import points
from backsight.figures import Panel, Part, page, panel_part, picture_part
from backsight.figures.bars import bar_part
from backsight.metrics import OUTCOMES
from backsight.results import Picture, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "presence": "Presence: 1 as in the input, 0 like the surroundings",
    "contrast": "Contrast with the surroundings, RGB in [0, 1]",
    "brought by query": "Its query brings the place to the input: 1 all the way",
    "painted by query": "Its query changes the place, RGB in [0, 1]",
}
"""Of the panels, in their order."""

DRAWN = ("correct", "class", "location", "duplicate", "background", "missed")
"""The types that have a line: as many as there are colours. What is wrong in both is rare, and in the table."""

_NAMES = {IMAGE: INPUT}
_ROWS = 1  # cases of each type


def error_page(result: Result) -> Figure:
    """For all models the counts, for each model its lines and its first cases of each type."""
    models = [str(model) for model in result.values_of("model")]
    parts = [bar_part(_counts(result, models), "how many", heading="Detections and missed objects by type")]
    for model in models:
        if panels := _panels(result, model):
            parts.append(panel_part(panels, columns=2, heading=title_of(result, model)))
        parts += _cases(result, model)
    return page(parts)


def _counts(result: Result, models: Sequence[str]) -> dict[str, dict[str, float]]:
    return {
        title_of(result, model): {
            kind: float(result.one(model=model, type=kind, metric="count").values.sum()) for kind in OUTCOMES
        }
        for model in models
    }


def _panels(result: Result, model: str) -> list[Panel]:
    """A panel for each quantity that has answers, in it a line for each type that has."""
    panels = []
    for metric, title in TITLES.items():
        by_type = {kind: result.select(model=model, metric=metric, type=kind) for kind in DRAWN}
        lines = {kind: points(measurements, "stage", _NAMES) for kind, measurements in by_type.items()}
        panels.append(Panel(title, {kind: line for kind, line in lines.items() if line}))
    return [panel for panel in panels if panel.table]


def _cases(result: Result, model: str) -> list[Part]:
    """The first cases of each type: their input, what each stage has, and what is left without the query."""
    shown = result.shown(model=model)
    columns = list(dict.fromkeys((str(each.labels["stage"]), str(each.labels["shows"])) for each in shown))
    columns.sort(key=lambda column: (INPUT, RECONSTRUCTION, WITHOUT).index(column[1]))
    columns = [*[each for each in columns if each[1] != WITHOUT], *[each for each in columns if each[1] == WITHOUT][:1]]
    rows, names, captions = [], [], []
    for kind in OUTCOMES:
        numbers = list(dict.fromkeys(each.labels["case"] for each in shown if each.labels["type"] == kind))
        for number in numbers[:_ROWS]:
            own = {(str(p.labels["stage"]), str(p.labels["shows"])): p for p in shown if p.labels["case"] == number}
            rows.append([own[column].image if column in own else None for column in columns])
            names.append(kind)
            captions.append([_caption(own[INPUT, INPUT]), *[""] * (len(columns) - 1)])
    if not rows:
        return []
    titles = [f"{stage}, {shows}" if shows == WITHOUT else stage for stage, shows in columns]
    heading = f"{title_of(result, model)}: object green, detection red; as the first seed paints them"
    return [picture_part(rows, titles, names, captions, heading)]


def _caption(picture: Picture) -> str:
    labels = picture.labels
    if labels["type"] == "missed":
        return str(labels["class"])
    said = f"{labels['detected as']} {labels['score']:.2f}"
    return said if labels["class"] == labels["detected as"] else f"{labels['class']} as {said}"

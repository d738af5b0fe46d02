"""Diagnose: a detector's errors on its data as a gallery; a case opened, from every stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backsight.app.error_cases import Diagnosis, ErrorCase
from backsight.app.rendering import Cell, FigureRow, View
from backsight.app.state import Diagnose, Look, to_query
from backsight.app.workspace import Workspace
from backsight.core import UserError
from backsight.experiments.detection_errors import INPUT, RECONSTRUCTION, WITHOUT
from backsight.metrics import OUTCOMES

MOST_SHOWN = 48
"""Cases in the gallery at most; filters show others."""

MOST_DRAWN = 12
"""Cases in a picture of the view."""

KIND_NAMES = {
    "correct": "found",
    "class": "wrong class",
    "location": "wrong place",
    "both": "wrong class and place",
    "duplicate": "found twice",
    "background": "nothing there",
    "missed": "missed",
}
"""What the page calls each type."""


def diagnose(workspace: Workspace, state: Diagnose) -> View:
    """The view of ``state``: what is known so far; the first images are searched if none were.

    Raises:
        UserError: no such model, type or case, or a model that does not detect.
    """
    diagnosis = workspace.diagnosis(state.model)
    if state.kind not in ("", *OUTCOMES):
        raise UserError(f"no type of error '{state.kind[:40]}': there are {', '.join(OUTCOMES)}")
    if not diagnosis.num_done:
        diagnosis.step()
    state = replace(state, model=diagnosis.model.name)
    case = diagnosis.case(state.case) if state.case else None
    cases = diagnosis.select(state.kind, state.label)

    def context() -> dict[str, Any]:
        return {
            "model": diagnosis.model,
            "counts": [(KIND_NAMES[kind], diagnosis.counts[kind], kind == state.kind) for kind in OUTCOMES],
            "case": case and _opened(workspace, diagnosis, case),
            "cases": [(each, KIND_NAMES[each.kind], each.crops[INPUT, INPUT]) for each in cases[:MOST_SHOWN]],
            "num_cases": len(cases),
        }

    def figure() -> list[FigureRow]:
        return _figure(diagnosis, cases if case is None else [case])

    return View(state, [], context, lambda: _numbers(diagnosis, cases), figure)


def _title(case: ErrorCase) -> str:
    found_as = case.labels["detected as"]
    other = f", called {found_as}" if found_as not in ("", case.label) else ""
    return f"{KIND_NAMES[case.kind]}: {case.label}{other}"


def _opened(workspace: Workspace, diagnosis: Diagnosis, case: ErrorCase) -> dict[str, Any]:
    """What the template shows of a case."""
    model = diagnosis.model
    picture = f"{workspace.data[model.name]}/{case.index}"
    facts = [picture]
    if case.labels["detected as"]:
        facts.append(f"score {float(case.labels['score']):.0%}")
    if float(case.labels["overlap"]):
        facts.append(f"overlap {float(case.labels['overlap']):.2f}")
    rows = {"all of it": {"input": (case.crops[INPUT, INPUT], "The place in the picture")}}
    for title, shows in (("all of it", RECONSTRUCTION), ("without the query", WITHOUT)):
        found = {stage: case.crops[stage, shows] for stage in model.stages if (stage, shows) in case.crops}
        if found:
            cells = {stage: (crop, f"The place, {shows} from {stage}") for stage, crop in found.items()}
            rows[title] = rows.get(title, {}) | cells
    query = to_query(Look(model=model.name, picture=picture))
    return {"title": _title(case), "facts": facts, "rows": rows, "query": query}


def _numbers(diagnosis: Diagnosis, cases: list[ErrorCase]) -> dict[str, object]:
    name = diagnosis.model.name
    return {
        **diagnosis.model.card(),
        "images looked at": diagnosis.num_done,
        "images in all": diagnosis.num_images,
        "counts": {kind: diagnosis.counts[kind] for kind in OUTCOMES},
        "cases": [{"case": each.number, "index": each.index, **each.labels, "model": name} for each in cases],
    }


def _figure(diagnosis: Diagnosis, cases: list[ErrorCase]) -> list[FigureRow]:
    """The first cases: the place in the image, and as every stage holds it."""
    if not cases:
        raise UserError("there is no case to draw: choose another type or class")
    rows = []
    for case in cases[:MOST_DRAWN]:
        crops = {stage: case.crops[stage, RECONSTRUCTION].pixels for stage in diagnosis.model.stages}
        cells = {stage: Cell(stage, image, "", "", "", 0) for stage, image in crops.items()}
        rows.append(FigureRow(str(case.number), case.crops[INPUT, INPUT].pixels, _title(case), cells))
    if diagnosis.model.card()["random"]:
        rows[0] = replace(rows[0], label=f"random weights: {rows[0].label}")
    return rows

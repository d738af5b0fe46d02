"""Diagnose: a detector's errors on its data as a gallery; a case opened, from every stage."""

from __future__ import annotations

from dataclasses import replace

from backsight.app.diagnosis import SHOWS, Diagnosis, ErrorCase
from backsight.app.markup import card_line, picture, sheet, tag, text
from backsight.app.observatory import Observatory
from backsight.app.pictures import read_uri
from backsight.app.state import Diagnose, Look, to_query
from backsight.app.views.base import View
from backsight.core import UserError
from backsight.experiments.detection_errors import INPUT
from backsight.figures import grid, to_png
from backsight.metrics import OUTCOMES

MOST_SHOWN = 48
"""Cases in the gallery at most; filters show others."""

WORDS = {
    "correct": "found",
    "class": "wrong class",
    "location": "wrong place",
    "both": "wrong class and place",
    "duplicate": "found twice",
    "background": "nothing there",
    "missed": "missed",
}
"""What the page calls each type."""

INPUT_NAME, SHOWN, SILENCED = SHOWS
SIDE = (192, 192)

LEGEND = (
    "Green: the object. Orange: the detection. Without the query: the reconstruction once the query that detected it "
    "says nothing."
)


def diagnose(observatory: Observatory, state: Diagnose) -> View:
    """The view of ``state``: what is known so far; the first pictures are looked at if none were.

    Raises:
        UserError: no such model, type or case, or a model that does not detect.
    """
    diagnosis = diagnosis_of(observatory, state)
    if state.kind not in ("", *OUTCOMES):
        raise UserError(f"no type of error '{state.kind[:40]}': there are {', '.join(OUTCOMES)}")
    if not diagnosis.num_done:
        diagnosis.step()
    state = replace(state, model=diagnosis.eyes.name)
    opened = _opened(diagnosis, state.case)
    cases = diagnosis.chosen(state.kind, state.label)
    body = tag(
        "article",
        tag("header", text("h2", f"Where {diagnosis.eyes.name} errs"), card_line(diagnosis.eyes.card())),
        _counts(diagnosis, state),
        _case(observatory, diagnosis, opened) if opened else "",
        _gallery(cases, state.case),
        class_="eyes",
    )
    return View(
        state, body, lambda: _numbers(diagnosis, cases), lambda: _plate(diagnosis, [opened] if opened else cases)
    )


def diagnosis_of(observatory: Observatory, state: Diagnose) -> Diagnosis:
    """The diagnosis of the model of ``state``, the first detector by default.

    Raises:
        UserError: it does not detect.
    """
    if not observatory.detectors:
        raise UserError("none of these models detects: errors are told of detectors, as zoo/detr-prior")
    return observatory.diagnosis(state.model or observatory.detectors[0])


def _opened(diagnosis: Diagnosis, number: str) -> ErrorCase | None:
    """The case of a link. One that was not come to yet is looked for: as far as all pictures, and no further."""
    if not number:
        return None
    if not number.isdecimal() or len(number) > 6:
        raise UserError(f"'{number[:20]}' is no case: click one in the gallery")
    while len(diagnosis.cases) <= int(number) and not diagnosis.is_done:
        diagnosis.step()
    if len(diagnosis.cases) <= int(number):
        raise UserError(f"there is no case {number}: there are {len(diagnosis.cases)}")
    return diagnosis.cases[int(number)]


def _counts(diagnosis: Diagnosis, state: Diagnose) -> str:
    rows = [
        tag(
            "li",
            text("b", str(diagnosis.counts[kind])),
            text("span", WORDS[kind]),
            class_="on" if kind == state.kind else None,
        )
        for kind in OUTCOMES
    ]
    return tag("ul", *rows, class_="counts")


def _title(case: ErrorCase) -> str:
    labels = case.labels
    said = f", called {labels['detected as']}" if labels["detected as"] not in ("", case.label) else ""
    return f"{WORDS[case.kind]}: {case.label}{said}"


def _case(observatory: Observatory, diagnosis: Diagnosis, case: ErrorCase) -> str:
    labels = case.labels
    name = f"{observatory.data[diagnosis.eyes.name]}/{case.place}"
    facts = []
    if labels["detected as"]:
        facts.append(f"score {float(labels['score']):.0%}")
    if float(labels["overlap"]):
        facts.append(f"overlap {float(labels['overlap']):.2f}")
    link = text(
        "a",
        "Look at the whole picture",
        href=f"?{to_query(Look(model=diagnosis.eyes.name, picture=name))}",
        target="_self",
    )
    head = tag("p", text("span", " · ".join([name, *facts]) + " · ", class_="soft"), link)
    stages = diagnosis.eyes.stages
    own = {"input": _shot(case, INPUT, INPUT_NAME), **{stage: _shot(case, stage, SHOWN) for stage in stages}}
    without = {stage: _shot(case, stage, SILENCED) for stage in stages if (stage, SILENCED) in case.pictures}
    rows = {"all of it": own, **({"without the query": without} if without else {})}
    title = _title(case)
    return tag(
        "div",
        text("h3", title[:1].upper() + title[1:]),
        head,
        sheet(rows, ["input", *stages], title),
        text("p", LEGEND, class_="soft legend"),
        class_="case",
    )


def _shot(case: ErrorCase, stage: str, shows: str) -> str:
    words = "The spot in the picture" if stage == INPUT else f"The spot, {shows} from {stage}"
    return tag("figure", picture(case.pictures[stage, shows], words, SIDE))


def _gallery(cases: list[ErrorCase], opened: str) -> str:
    if not cases:
        return text("p", "None so far.", class_="soft")
    cells = [
        tag(
            "button",
            picture(each.pictures[INPUT, INPUT_NAME], "", SIDE),
            text("b", WORDS[each.kind]),
            text("span", each.label),
            type="button",
            data_case=each.number,
            aria_pressed="true" if str(each.number) == opened else "false",
        )
        for each in cases[:MOST_SHOWN]
    ]
    more = (
        f"The first {MOST_SHOWN} of {len(cases)}: choose a type or a class to see others."
        if len(cases) > MOST_SHOWN
        else ""
    )
    return tag("div", *cells, class_="gallery") + (text("p", more, class_="soft") if more else "")


def _numbers(diagnosis: Diagnosis, cases: list[ErrorCase]) -> dict[str, object]:
    return {
        **diagnosis.eyes.card(),
        "images looked at": diagnosis.num_done,
        "images in all": diagnosis.num_images,
        "counts": {kind: diagnosis.counts[kind] for kind in OUTCOMES},
        "cases": [
            {"case": each.number, "index": each.place, **each.labels, "model": diagnosis.eyes.name} for each in cases
        ],
    }


def _plate(diagnosis: Diagnosis, cases: list[ErrorCase]) -> bytes:
    """The first cases, a row for each: the spot in the picture, and as every stage holds it."""
    stages = diagnosis.eyes.stages
    shown = cases[:12]
    if not shown:
        raise UserError("there is no case to draw: choose another type or class")
    rows = [
        [read_uri(each.pictures[INPUT, INPUT_NAME]), *(read_uri(each.pictures[stage, SHOWN]) for stage in stages)]
        for each in shown
    ]
    captions = [[_title(each), *[""] * len(stages)] for each in shown]
    weights = "random weights" if diagnosis.eyes.card()["random"] else ""
    return to_png(
        grid(
            rows,
            [" ".join(filter(None, ["picture", weights])), *stages],
            [str(each.number) for each in shown],
            captions,
        )
    )

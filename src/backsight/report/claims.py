"""Claims as a paper carries them: a table as CSV and LaTeX, a figure, and a paragraph of methods from the settings."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backsight.experiments import Result
from backsight.experiments.claims import Control, Judgement
from backsight.experiments.run import page_name
from backsight.experiments.subject import LINEAR_INVERSE, UNTRAINED_INVERSE, UNTRAINED_MODEL
from backsight.figures import to_pdf, to_png
from backsight.figures.forest import Bar, ForestRow, forest_pages
from backsight.io import write_bytes, write_text
from backsight.report.views import format_bounds, format_effect

COLUMNS = (
    *("claim", "source", "verdict", "effect", "low", "high", "unit", "part", "null", "least", "most"),
    *("control", "control effect", "linear effect", "p", "p (Holm)", "condition", "reason"),
)
"""Of ``claims.csv``; the effect is the one that the verdict hangs on."""


def write_paper(folder: str | Path, claims: Sequence[Judgement], results: Mapping[str, Result]) -> None:
    """Write ``claims.csv``, ``claims.tex``, ``claims.pdf``, its pages as PNG, and ``methods.txt`` into ``folder``."""
    folder = Path(folder)
    write_text(folder / "claims.csv", to_csv(claims))
    write_text(folder / "claims.tex", to_latex(claims))
    write_text(folder / "methods.txt", methods(claims, results) + "\n")
    tested = [each for each in claims if each.verdict != "not tested"]
    sheets = forest_pages([row_of(each) for each in [*tested, *(each for each in claims if each not in tested)]])
    write_bytes(folder / "claims.pdf", to_pdf(sheets))
    for number, sheet in enumerate(sheets, 1):
        write_bytes(folder / page_name(number).replace("figure", "claims"), to_png(sheet))


def to_csv(claims: Sequence[Judgement]) -> str:
    """A line for each claim, with the columns :data:`COLUMNS`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for claim in claims:
        part, control, linear = claim.effect, _null(claim), _linear(claim)
        numbers = [part.mean, part.low, part.high] if part else [None] * 3
        writer.writerow(
            [
                *(claim.statement, claim.source, claim.verdict, *map(_digits, numbers), claim.unit),
                *(part.what if part else "", claim.null, *map(_digits, claim.bounds)),
                *((control.kind, _digits(control.mean)) if control else ("", "")),
                _digits(linear.mean) if linear else "",
                *(_digits(claim.chance), _digits(claim.adjusted), claim.condition, claim.reason),
            ]
        )
    return stream.getvalue()


def to_latex(claims: Sequence[Judgement]) -> str:
    """A ``longtable`` (with ``booktabs``) of the claims that were tested."""
    rows = []
    for claim in claims:
        part = claim.effect
        if part is not None:
            bounds = "" if part.low is None else f" [{part.low:.3f}, {part.high:.3f}]"
            beside = [f"{each.mean:.3f}" if each else "--" for each in (_null(claim), _linear(claim))]
            chance = "--" if claim.adjusted is None else _p_value(claim.adjusted).replace("< 0", "$<$")
            effect = f"{part.mean:.3f}{bounds}"
            words = [_escape(claim.statement), f"{claim.null:g}", effect, *beside, chance, claim.verdict]
            rows.append("  " + " & ".join(words) + r" \\")
    head = r"  claim & null & effect, 95\,\% interval & untrained & linear & $p$ & verdict \\"
    lines = [r"\begin{longtable}{p{0.42\linewidth}llllll}", r"  \toprule", head, r"  \midrule", r"  \endhead", *rows]
    return "\n".join([*lines, r"  \bottomrule", r"\end{longtable}"]) + "\n"


def _escape(text: str) -> str:
    for sign in "&%#_$":
        text = text.replace(sign, "\\" + sign)
    return text


def _p_value(chance: float) -> str:
    return "< 0.001" if chance < 0.001 else f"{chance:.3f}"


def _digits(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


# ---- the effect that a verdict hangs on, and its controls


def _null(claim: Judgement) -> Control | None:
    """Of an untrained inverse; of an untrained model where there is no other."""
    return _control(claim, UNTRAINED_INVERSE) or _control(claim, UNTRAINED_MODEL)


def _linear(claim: Judgement) -> Control | None:
    return _control(claim, LINEAR_INVERSE)


def _control(claim: Judgement, kind: str) -> Control | None:
    return next((each for each in claim.controls if each.kind == kind), None)


def bar_of(claim: Judgement) -> Bar | None:
    """The interval on a scale of its own that has the null, what is expected, and all of the interval in it; controls
    beyond its ends stand at them."""
    part = claim.effect
    if part is None:
        return None
    low, high = (math.inf if bound is None else bound for bound in claim.bounds)
    marks = [*part.ends, claim.null, *(each for each in (low, high) if math.isfinite(each))]
    start, width = min(marks), max(max(marks) - min(marks), 1e-12)
    start, width = start - 0.12 * width, 1.24 * width

    def place(value: float) -> float:
        return round(min(100.0, max(0.0, 100 * (value - start) / width)), 2)

    expected = (0.0 if claim.bounds[0] is None else place(low), 100.0 if claim.bounds[1] is None else place(high))
    controls = tuple(place(each.mean) for each in claim.controls if each.kind != LINEAR_INVERSE)
    linear = _linear(claim)
    low_end, high_end = (place(end) for end in part.ends)
    return Bar(
        place(part.mean),
        low_end,
        high_end,
        place(claim.null),
        expected,
        controls,
        place(linear.mean) if linear else None,
    )


def control_words(claim: Judgement) -> str:
    """The controls in words: ``untrained inverse 0.310``."""
    return ", ".join(f"{each.kind} {format_effect(each.mean)}" for each in claim.controls)


def row_of(claim: Judgement) -> ForestRow:
    """A claim as the figure shows it."""
    part = claim.effect
    if part is None:
        return ForestRow(claim.statement, "", f"not tested: {claim.reason}", None)
    words = f"{format_effect(part.mean)} {format_bounds(part.low, part.high)} {claim.unit}; {part.what}"
    controls = f"; {control_words(claim)}" if claim.controls else ""
    chance = "" if claim.adjusted is None else f", p {_p_value(claim.adjusted)}"
    reason = f": {claim.reason}" if claim.reason else ""
    return ForestRow(claim.statement, words + controls, f"{claim.verdict}{chance}{reason}", bar_of(claim))


# ---- methods


def methods(claims: Sequence[Judgement], results: Mapping[str, Result]) -> str:
    """What was done, in a paragraph for a paper, from the cards of the models and the settings of the experiments."""
    found = [card for result in results.values() for card in result.subjects if "run" not in card]
    own = distinct_cards(found)
    controls = [card for card in found if card.get("control")]
    tested = [each for each in claims if each.chance is not None]
    sentences = [*(_of_model(card, "up to " if len(results) > 1 else "") for card in own), *_of_experiments(results)]
    if controls:
        sentences.append(
            "Every effect on reconstructions was measured on controls as well, on the first "
            f"{max(card['num_images'] for card in controls)} images: inverses of the same structure that were never "
            "trained, and the forward model with random weights beneath them; a claim that holds for untrained "
            "inverses counts as undecided."
        )
    if any(card["control"] == LINEAR_INVERSE for card in controls):
        sentences.append(
            "As a baseline, which decides nothing, the same effects were measured on inverses in closed form: ridge "
            "regressions on the training images."
        )
    sentences.append(
        "Intervals are 95 % intervals of Student's t over images and seeds of inverses, both drawn at random (over "
        "images alone where there is one seed), of ratios of means after linearisation, and of differences of shares "
        f"by the method of Bonett and Price (2012). {len(tested)} claims were tested at once; verdicts are by the "
        "method of Holm (1979) at a family-wise level of 5 %, a claim about several effects holding if each is as "
        "claimed."
    )
    return " ".join(sentences)


def distinct_cards(cards: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One for each model and data, that with the most images; controls have none."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for card in cards:
        key = str(card["model"]), str(card["data"])
        if not card.get("control") and card.get("num_images", 0) > found.get(key, {}).get("num_images", -1):
            found[key] = card
    return list(found.values())


def _of_model(card: Mapping[str, Any], up_to: str) -> str:
    height, width = card.get("size", ("?", "?"))
    weights = "random weights" if card.get("random") else f"weights {str(card.get('weights', ''))[:40]}"
    seeds = len(card.get("seeds", ()))
    return (
        f"{card['model']} ({weights}) was given {up_to}{card.get('num_images', 'some')} test images of "
        f"{card.get('data')} (fingerprint {str(card.get('data_fingerprint', ''))[:12]}), "
        f"{card.get('fit', 'stretch')} to {height} x {width} pixels, values RGB in [0, 1], and inverted at "
        f"{', '.join(card.get('stages', ()))} by {seeds} {'chain' if seeds == 1 else 'chains of other seeds'}."
    )


def _of_experiments(results: Mapping[str, Result]) -> Iterator[str]:
    for name, result in results.items():
        shown = {key: value for key, value in result.settings.items() if value not in ("", [], None) and key != "runs"}
        if shown:
            settings = ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in shown.items())
            yield f"{name.replace('_', ' ').capitalize()}: {settings}."


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

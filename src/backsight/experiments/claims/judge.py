"""What results make of claims: effects with intervals, verdicts that hold for all claims at once, and their file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from backsight.core import UserError
from backsight.experiments.claims.claim import Claim, Comparison, Evidence
from backsight.experiments.subject import CONTROLS, UNTRAINED_INVERSE
from backsight.io import as_record, read_json, write_json
from backsight.metrics.statistics import (
    CONFIDENCE,
    Estimate,
    difference,
    estimate,
    estimate_share_difference,
    holm,
)
from backsight.results import Measurement, Result
from backsight.validation import Record

FORMAT = "backsight.claims/2"
"""Of ``claims.json``; changes when a reader of the old schema would misread the new one."""

Verdict = Literal["holds", "does not hold", "undecided", "not tested"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "undecided", "not tested")

FEWEST = 5
"""Images below which an interval means nothing: what has an answer in fewer of them stays undecided."""


@dataclass(frozen=True)
class Effect(Record):
    """One of the effects of a claim: its mean and 95 % interval (None where there is a single value), what it is over
    (``count`` of ``columns``, for ``seeds`` seeds; ``paired`` where both sides were measured on the same image), what
    follows of it alone, and its p-values: that it is no further inside (``inside``) or outside of what is claimed."""

    what: str
    mean: float
    low: float | None
    high: float | None
    count: int
    columns: str
    seeds: int
    paired: bool
    verdict: Verdict
    inside: float
    outside: float

    @property
    def ends(self) -> tuple[float, float]:
        """(low, high) of the interval; where there is none, the mean twice."""
        return (self.mean, self.mean) if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Control(Record):
    """The effect ``what`` of a claim, measured on something else: ``kind`` is an untrained inverse, or an untrained
    model, which must not have it, or a linear inverse, which may."""

    kind: str
    what: str
    mean: float
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Judgement(Record):
    """What a claim came to under one condition.

    The fields of the claim are repeated, so that this can be read without it; ``bounds`` are the effects that it
    expects (None: infinite). ``parts`` are its effects, the one that the verdict hangs on first: a claim holds if
    all of them do. ``chance`` is its p-value (of the verdict being wrong), ``adjusted`` the same among all claims that
    were tested (Holm, 1979), which the verdict goes by. ``controls`` are the effects of untrained things and of a
    linear inverse. ``subjects`` are the cards of the models, ``reason`` is why it was not tested, or cannot be decided.
    """

    id: str
    statement: str
    source: str
    experiment: str
    unit: str
    expect: str
    null: float
    bounds: tuple[float | None, float | None]
    verdict: Verdict
    reason: str = ""
    parts: tuple[Effect, ...] = ()
    subjects: tuple[Mapping[str, Any], ...] = ()
    controls: tuple[Control, ...] = ()
    chance: float | None = None
    adjusted: float | None = None

    @property
    def effect(self) -> Effect | None:
        """The effect that the verdict hangs on; None where the claim was not tested."""
        return self.parts[0] if self.parts else None

    @property
    def condition(self) -> str:
        """What it was tested under, in a sentence."""
        parts = [_describe(card) for card in self.subjects]
        if part := self.effect:
            paired = "" if part.paired else "; not paired: other images, or other seeds"
            count = f"{part.count} {part.columns}" if part.columns else "a mean over images"
            seeds = "one seed: for new images alone" if part.seeds == 1 else f"{part.seeds} seeds"
            parts.append(f"{count}, {seeds}{paired}")
        return "; ".join(parts)


def _describe(card: Mapping[str, Any]) -> str:
    weights = ", random weights" if card.get("random") else ""
    return f"{card['model']}{weights} on {card.get('data') or 'unknown data'}"


class Claims(list[Judgement]):
    """Claims that were judged, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        from backsight.display import claims_html

        return claims_html(self)


def judge(claims: Sequence[Claim], results: Mapping[str, Result], missing: Mapping[str, str] | None = None) -> Claims:
    """Every claim, once for each choice of models that play its roles; verdicts are of all of them together.

    Args:
        claims: what is claimed.
        results: by experiment.
        missing: why an experiment has no result, by its name.
    """
    found = [each for claim in claims for each in _judge(claim, results.get(claim.experiment), missing or {})]
    chances = holm([each.chance for each in found if each.chance is not None])
    adjusted = iter(chances)
    return Claims(each if each.chance is None else _decide(each, next(adjusted), len(chances)) for each in found)


def _judge(claim: Claim, result: Result | None, missing: Mapping[str, str]) -> Iterator[Judgement]:
    if result is None:
        yield _judgement(claim, missing.get(claim.experiment, f"{claim.experiment} was not done"))
        return
    players = [dict.fromkeys(card["model"] for card in result.subjects if role.fits(card)) for role in claim.roles]
    for role, models in zip(claim.roles, players, strict=True):
        if not models:
            yield _judgement(claim, f"{claim.experiment} was not done with {role}")
            return
    for models in product(*players):
        yield _test(claim, Evidence(result, models))


def _test(claim: Claim, evidence: Evidence) -> Judgement:
    """What a claim comes to for one choice of models; its verdict by itself, which :func:`_decide` looks at again."""
    cards = tuple(evidence.card(role) for role in range(len(evidence.models)))
    try:
        parts = [_weigh(claim, each) for each in claim.compare(evidence)]
    except UserError as error:
        return _judgement(claim, str(error), cards)
    if not parts:
        return _judgement(claim, f"{claim.experiment} has nothing to compare here", cards)
    low, high = claim.bounds
    # First the effect that the verdict hangs on: of those with the worst verdict the one nearest to a bound.
    order: Sequence[Verdict] = ("does not hold", "undecided", "holds")
    parts.sort(key=lambda part: (order.index(part.verdict), min(part.ends[0] - low, high - part.ends[1])))
    holds = max(part.inside for part in parts)
    fails = min(1.0, len(parts) * min(part.outside for part in parts))
    found = replace(
        _judgement(claim, "", cards),
        verdict="holds" if holds < fails else "does not hold",
        parts=tuple(parts),
        controls=tuple(_controls(claim, evidence, parts[0].what)) if claim.of_inverses else (),
    )
    if few := _too_few(parts[0].count, parts[0].seeds, parts[0].columns):
        return replace(found, verdict="undecided", reason=few)
    return replace(found, chance=min(1.0, 2 * min(holds, fails)))


def _decide(found: Judgement, adjusted: float, number: int) -> Judgement:
    """The verdict among ``number`` claims, and beside its controls."""
    found = replace(found, adjusted=adjusted)
    level = 1 - CONFIDENCE
    if adjusted >= level:
        alone = found.chance is not None and found.chance < level
        reason = "the interval holds effects that it expects and others"
        if alone:
            reason = f"by itself it {found.verdict}, but not among {number} claims at once"
        return replace(found, verdict="undecided", reason=reason)
    blind = [each for each in found.controls if each.kind == UNTRAINED_INVERSE and each.verdict == "holds"]
    if found.verdict == "holds" and blind:
        return replace(found, verdict="undecided", reason="an inverse that was never trained has it as well")
    return found


def _controls(claim: Claim, evidence: Evidence, what: str) -> Iterator[Control]:
    """The effect that the verdict hangs on, of its controls; their verdicts are those of all effects."""
    for kind in CONTROLS:
        names = {card["of"]: str(card["model"]) for card in evidence.result.subjects if card.get("control") == kind}
        if not all(model in names for model in evidence.models):
            continue
        try:
            own = Evidence(evidence.result, tuple(names[model] for model in evidence.models))
            parts = [_weigh(claim, each) for each in claim.compare(own)]
        except UserError:
            continue
        shown = next((part for part in parts if part.what == what), None)
        if shown is not None:
            worst = next((part for part in parts if part.verdict != "holds"), parts[0])
            yield Control(kind, what, shown.mean, shown.low, shown.high, worst.verdict)


def _weigh(claim: Claim, comparison: Comparison) -> Effect:
    """The effect of a comparison and its interval.

    Raises:
        UserError: no image has an answer.
    """
    sides = [Measurement({}, each).known() for each in (comparison.values, comparison.against) if each is not None]
    if not all(side.numel() for side in sides):
        raise UserError(f"no image has an answer to '{comparison.what}'")
    found = _estimate(comparison, sides)
    seeds, count = (min(side.shape[axis] for side in sides) for axis in (0, 1))
    low, high = claim.bounds
    inside = max(found.chance_above(low), found.chance_below(high))
    outside = min(found.chance_below(low), found.chance_above(high)) * (2 if claim.expect == "near" else 1)
    bounds = (None, None) if math.isnan(found.error) else found.interval()[1:]
    verdict: Verdict = "undecided"
    if not _too_few(count, seeds, comparison.columns):
        tail = (1 - CONFIDENCE) / 2
        verdict = "holds" if inside < tail else "does not hold" if outside < tail else "undecided"
    inside, outside = (1.0 if math.isnan(each) else min(1.0, each) for each in (inside, outside))
    what, columns = comparison.what, comparison.columns
    return Effect(what, found.mean, *bounds, count, columns, seeds, len(sides) == 1, verdict, inside, outside)


def _estimate(comparison: Comparison, sides: Sequence[Any]) -> Estimate:
    if comparison.kind == "share" and len(sides) == 1:
        of_images = estimate_share_difference(sides[0])
        of_seeds = estimate(sides[0])  # of several: they may differ more than images do
        return max(of_images, of_seeds if len(sides[0]) > 1 else of_images, key=lambda each: each.half)
    found = [estimate(side) for side in sides]
    return found[0] if len(found) == 1 else difference(found[0], found[1])


def _too_few(count: int, seeds: int, columns: str) -> str:
    """Why nothing can be said of so few values; empty where something can. Means over images have only seeds."""
    if not columns:
        return "a single seed has no interval" if seeds < 2 else ""
    return f"too few {columns} have an answer: {count}" if count < FEWEST else ""


def _judgement(claim: Claim, reason: str, subjects: tuple[Mapping[str, Any], ...] = ()) -> Judgement:
    """Of a claim that was not tested."""
    low, high = (None if math.isinf(bound) else bound for bound in claim.bounds)
    of_claim = (claim.id, claim.statement, claim.source, claim.experiment, claim.unit, claim.expect, claim.null)
    return Judgement(*of_claim, (low, high), "not tested", reason, subjects=subjects)


# ---- the file


def save_claims(judgements: Sequence[Judgement], path: str | Path) -> Path:
    """Write ``claims.json``, whole."""
    content = [{**asdict(each), "condition": each.condition} for each in judgements]
    return write_json(path, {"format": FORMAT, "claims": content})


def load_claims(path: str | Path) -> Claims:
    """The inverse of :func:`save_claims`.

    Raises:
        UserError: it is not a file of this format.
    """
    fix = "do `backsight reproduce` again"
    value = read_json(Path(path), fix, ("format",))
    if value["format"] != FORMAT:
        raise UserError(f"{path} has claims in another format: this version reads {FORMAT}")
    return Claims(as_record(value, _Saved, str(path), fix).claims)


@dataclass(frozen=True)
class _Saved(Record):
    """What ``claims.json`` holds."""

    claims: tuple[Judgement, ...]

"""What a claim is, a sentence about measurements that can turn out wrong; and what results make of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from backsight.core import UserError
from backsight.io import in_words, write_text
from backsight.metrics import Interval, bootstrap, bootstrap_difference
from backsight.results import Label, Measurement, Result

FORMAT = "backsight.claims/1"
"""Of ``claims.json``; changes when a reader of the old schema would misread the new one."""

Expectation = Literal["above", "below", "near"]
"""Where a claim says that its effect lies, as seen from its null."""

Verdict = Literal["holds", "does not hold", "undecided", "not tested"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "undecided", "not tested")

FEWEST = 5
"""Images below which an interval means nothing: what has an answer in fewer of them stays undecided."""


@dataclass(frozen=True)
class Role:
    """What a claim speaks of: models that ``task`` (``detect``, ``classify``), on data of the drawn world's ``law``.
    What is empty may be anything."""

    task: str = ""
    law: str = ""

    def fits(self, card: Mapping[str, Any]) -> bool:
        """Whether the subject of ``card`` (as :meth:`~backsight.experiments.Subject.card` gives it) is meant."""
        return self.task in ("", card.get("task")) and (not self.law or self.law in str(card.get("data")).split(":"))

    def __str__(self) -> str:
        kind = {"detect": "a detector", "classify": "a classifier"}.get(self.task, "a model")
        return f"{kind} on world:{self.law}" if self.law else kind


DETECTOR, CLASSIFIER, ANY = Role("detect"), Role("classify"), Role()


@dataclass(frozen=True)
class Comparison:
    """An effect in values: their mean is the effect.

    ``values`` are ``S images``, with NaN where an image has no answer: differences or ratios of what was measured on
    the same image. ``against`` are values of other images or other seeds, whose mean is subtracted. ``columns``
    says what a column is, where it is no image.
    """

    what: str
    values: Tensor
    against: Tensor | None = None
    columns: str = "images"


@dataclass(frozen=True)
class Evidence:
    """A result, and the models in it that play the roles of a claim, in their order."""

    result: Result
    models: tuple[str, ...]

    def select(self, role: int = 0, **labels: Label) -> list[Measurement]:
        """The measurements of the model in a role that carry ``labels``."""
        return self.result.select(model=self.models[role], **labels)

    def values(self, role: int = 0, **labels: Label) -> Tensor:
        """The values ``S images`` of the one measurement that carries ``labels``.

        Raises:
            UserError: there is none, or more than one.
        """
        return self.result.one(model=self.models[role], **labels).values

    def stages(self, role: int = 0) -> list[str]:
        """The stages of the model in a role that its chains invert, in the order of the forward pass."""
        card = next(card for card in self.result.subjects if card["model"] == self.models[role])
        return list(card["stages"])

    def shared_stages(self) -> list[str]:
        """The stages that the first two models both have."""
        return [stage for stage in self.stages(0) if stage in self.stages(1)]

    def deepest(self, role: int = 0) -> str:
        """The last stage that is made of features, and not yet the answer: the decoder of DETR, the encoder of ViT."""
        return [stage for stage in self.stages(role) if stage != "prediction"][-1]


@dataclass(frozen=True)
class Claim:
    """A sentence that measurements decide on.

    Attributes:
        id: of the claim, the same in every version.
        statement: the sentence.
        source: where it is made: section and figure of the paper, or ``ours``.
        experiment: whose result decides.
        roles: the models that it is about: one, or several that are compared.
        compare: evidence -> the effects that must *all* be as expected; raises UserError where it cannot be
            tested.
        unit: of the effect, in words.
        expect: where the effect lies by the claim: ``above`` or ``below`` the ``null`` by ``least`` or more, or
            ``near`` it, by less than ``least``.
        null: the effect that nothing would have: 0 of a difference, 1 of a ratio.
        least: the smallest departure from it that matters, in the effect's unit.
    """

    id: str
    statement: str
    source: str
    experiment: str
    roles: tuple[Role, ...]
    compare: Callable[[Evidence], Iterable[Comparison]]
    unit: str
    expect: Expectation = "above"
    null: float = 0.0
    least: float = 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """The effects between these two are what the claim says; either may be infinite."""
        if self.expect == "near":
            return self.null - self.least, self.null + self.least
        return (self.null + self.least, math.inf) if self.expect == "above" else (-math.inf, self.null - self.least)


def for_both(
    name: str,
    statement: str,
    source: str,
    experiment: str,
    compare: Callable[[Evidence], Iterable[Comparison]],
    unit: str,
    **bounds: Any,
) -> Iterator[Claim]:
    """A claim about a detector, and the same about a ViT, which ``{}`` in the statement stands for."""
    for short, kind, role in (("detr", "a detector", DETECTOR), ("vit", "a ViT", CLASSIFIER)):
        yield Claim(f"{name}-{short}", statement.format(kind), source, experiment, (role,), compare, unit, **bounds)


# ---- what results make of claims


@dataclass(frozen=True)
class Part:
    """One of the effects of a claim: its mean and 95 % interval (None where there is a single value to resample), what
    was resampled (``count`` of ``columns``, for ``seeds`` seeds; ``paired`` where both sides were measured on the same
    image), and what follows of it alone."""

    what: str
    mean: float
    low: float | None
    high: float | None
    count: int
    columns: str
    seeds: int
    paired: bool
    verdict: Verdict

    @property
    def ends(self) -> tuple[float, float]:
        """(low, high) of the interval; where there is none, the mean twice."""
        return (self.mean, self.mean) if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Judgement:
    """What a claim came to under one condition.

    The fields of the claim are repeated, so that this can be read without it; ``bounds`` are the effects that it
    expects (None: infinite). ``parts`` are its effects, the one that the verdict hangs on first: a claim holds if
    all of them do. ``subjects`` are the cards of the models, ``reason`` is why it was not tested, or cannot be decided.
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
    parts: tuple[Part, ...] = ()
    subjects: tuple[Mapping[str, Any], ...] = ()

    @property
    def condition(self) -> str:
        """What it was tested under, in a sentence."""
        parts = [_describe(card) for card in self.subjects]
        if self.parts:
            part = self.parts[0]
            paired = "" if part.paired else "; not paired: other images, or other seeds"
            count = f"{part.count} {part.columns}" if part.columns else "a mean over images"
            parts.append(f"{count}, {part.seeds} {'seed' if part.seeds == 1 else 'seeds'}{paired}")
        return "; ".join(parts)


def _describe(card: Mapping[str, Any]) -> str:
    weights = ", random weights" if card.get("random") else ""
    return f"{card['model']}{weights} on {card.get('data') or 'unknown data'}"


def judge(
    claims: Sequence[Claim], results: Mapping[str, Result], missing: Mapping[str, str] | None = None
) -> list[Judgement]:
    """Every claim, once for each choice of models that play its roles.

    Args:
        claims: what is claimed.
        results: by experiment.
        missing: why an experiment has no result, by its name.
    """
    return [each for claim in claims for each in _judge(claim, results.get(claim.experiment), missing or {})]


def _judge(claim: Claim, result: Result | None, missing: Mapping[str, str]) -> Iterator[Judgement]:
    if result is None:
        yield _judgement(claim, "not tested", missing.get(claim.experiment, f"{claim.experiment} was not done"))
        return
    players = [_players(role, result) for role in claim.roles]
    for role, found in zip(claim.roles, players, strict=True):
        if not found:
            yield _judgement(claim, "not tested", f"{claim.experiment} was not done with {role}")
            return
    for models in product(*players):
        yield _test(claim, Evidence(result, models))


def _players(role: Role, result: Result) -> list[str]:
    return list(dict.fromkeys(str(card["model"]) for card in result.subjects if role.fits(card)))


def _test(claim: Claim, evidence: Evidence) -> Judgement:
    cards = tuple(next(c for c in evidence.result.subjects if c["model"] == model) for model in evidence.models)
    try:
        parts = [_weigh(claim, each) for each in claim.compare(evidence)]
    except UserError as error:
        return _judgement(claim, "not tested", str(error), (), cards)
    if not parts:
        return _judgement(claim, "not tested", f"{claim.experiment} has nothing to compare here", (), cards)
    low, high = claim.bounds
    order: Sequence[Verdict] = ("does not hold", "undecided", "holds")
    parts.sort(key=lambda part: (order.index(part.verdict), min(part.ends[0] - low, high - part.ends[1])))
    verdict, reason = parts[0].verdict, ""
    if verdict == "undecided":
        few = _too_few(parts[0].count, parts[0].seeds, parts[0].columns)
        reason = few or "the interval holds effects that it expects and others"
    return _judgement(claim, verdict, reason, tuple(parts), cards)


def _weigh(claim: Claim, comparison: Comparison) -> Part:
    """The effect of a comparison and its interval.

    Raises:
        UserError: no image has an answer.
    """
    sides = [Measurement({}, each).known() for each in (comparison.values, comparison.against) if each is not None]
    if not all(side.numel() for side in sides):
        raise UserError(f"no image has an answer to '{comparison.what}'")
    interval = bootstrap(sides[0]) if len(sides) == 1 else bootstrap_difference(sides[0], sides[1])
    bounds = (None, None) if any(side.numel() == 1 for side in sides) else interval[1:]
    seeds, count = (min(side.shape[axis] for side in sides) for axis in (0, 1))
    verdict = "undecided" if _too_few(count, seeds, comparison.columns) else _verdict(interval, claim.bounds)
    return Part(comparison.what, interval.mean, *bounds, count, comparison.columns, seeds, len(sides) == 1, verdict)


def _verdict(interval: Interval, bounds: tuple[float, float]) -> Verdict:
    if bounds[0] < interval.low and interval.high < bounds[1]:
        return "holds"
    return "does not hold" if interval.high <= bounds[0] or interval.low >= bounds[1] else "undecided"


def _too_few(count: int, seeds: int, columns: str) -> str:
    """Why nothing can be said of so few values; empty where something can. Means over images have only seeds."""
    if not columns:
        return "a single seed has no interval" if seeds < 2 else ""
    return f"too few {columns} have an answer: {count}" if count < FEWEST else ""


def _judgement(
    claim: Claim,
    verdict: Verdict,
    reason: str = "",
    parts: tuple[Part, ...] = (),
    subjects: tuple[Mapping[str, Any], ...] = (),
) -> Judgement:
    low, high = (bound if abs(bound) != float("inf") else None for bound in claim.bounds)
    said = (claim.id, claim.statement, claim.source, claim.experiment, claim.unit, claim.expect, claim.null)
    return Judgement(*said, (low, high), verdict, reason, parts, subjects)


def save_claims(judgements: Sequence[Judgement], path: str | Path) -> Path:
    """Write ``claims.json``, whole."""
    content = [{**asdict(each), "condition": each.condition} for each in judgements]
    return write_text(path, json.dumps({"format": FORMAT, "claims": content}, indent=2, allow_nan=False) + "\n")


def load_claims(path: str | Path) -> list[Judgement]:
    """The inverse of :func:`save_claims`.

    Raises:
        UserError: it is not a file of this format.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise UserError(f"{path} has claims in another format: this version reads {FORMAT}")
        return [_read(each) for each in value["claims"]]
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise UserError(
            f"{path} is not a claims.json ({FORMAT}), {in_words(error)}: do `backsight reproduce` again"
        ) from error


def _read(value: dict[str, Any]) -> Judgement:
    own = {name: each for name, each in value.items() if name != "condition"}
    parts = tuple(Part(**part) for part in value["parts"])
    return Judgement(**{**own, "parts": parts, "subjects": tuple(value["subjects"]), "bounds": tuple(value["bounds"])})

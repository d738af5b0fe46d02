"""What a claim is: a sentence about measurements that can turn out wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from backsight.results import Label, Measurement, Result

Expectation = Literal["above", "below", "near"]
"""Where a claim says that its effect lies, as seen from its null."""

Kind = Literal["mean", "share"]
"""``share``: a difference of shares of the same images (accuracies, say), of which most may be 0."""


@dataclass(frozen=True)
class Role:
    """What a claim speaks of: models that ``task`` (``detect``, ``classify``), on data of the drawn world's ``law``.
    What is empty may be anything."""

    task: str = ""
    law: str = ""

    def fits(self, card: Mapping[str, Any]) -> bool:
        """Whether the subject of ``card`` (as :meth:`~backsight.experiments.Subject.card` gives it) is meant; controls
        never are."""
        law = not self.law or self.law in str(card.get("data")).split(":")
        return self.task in ("", card.get("task")) and law and not card.get("control")

    def __str__(self) -> str:
        kind = {"detect": "a detector", "classify": "a classifier"}.get(self.task, "a model")
        return f"{kind} on world:{self.law}" if self.law else kind


DETECTOR, CLASSIFIER, ANY = Role("detect"), Role("classify"), Role()


@dataclass(frozen=True)
class Comparison:
    """An effect in values: their mean is the effect.

    ``values`` are ``S images``, with NaN where an image has no answer: differences, or ratios
    (:func:`backsight.metrics.ratio`), of what was measured on the same image. ``against`` are values of other images or
    other seeds, whose mean is subtracted. ``columns`` says what a column is, where it is no image.
    """

    what: str
    values: Tensor
    against: Tensor | None = None
    columns: str = "images"
    kind: Kind = "mean"


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

    def card(self, role: int = 0) -> Mapping[str, Any]:
        """The card of the model in a role."""
        return next(card for card in self.result.subjects if card["model"] == self.models[role])

    def stages(self, role: int = 0) -> list[str]:
        """The stages of the model in a role that its chains invert, in the order of the forward pass."""
        return list(self.card(role)["stages"])

    def shared_stages(self) -> list[str]:
        """The stages that the first two models both have."""
        return [stage for stage in self.stages(0) if stage in self.stages(1)]

    def deepest(self) -> str:
        """The last stage that is made of features, and not yet the answer: the decoder of DETR, the encoder of ViT."""
        return [stage for stage in self.stages() if stage != "prediction"][-1]

    def between(self, what: str, own: Tensor, other: Tensor) -> Comparison:
        """The values of the first model less those of the second: image by image where both saw the same ones (the ids
        agree, and both were brought to their sizes alike), else as two means."""
        ids = [list(self.result.images.get(model, ())) for model in self.models[:2]]
        alike = self.card(0).get("fit") == self.card(1).get("fit")
        whole = {own.shape[1], other.shape[1]} == {len(ids[0])}
        if not alike or not ids[0] or set(ids[0]) != set(ids[1]) or not whole:
            return Comparison(what, own, other)
        order = [ids[1].index(each) for each in ids[0]]
        seeds = min(len(own), len(other))  # seeds are independent: any may be held against any
        return Comparison(what, own[:seeds] - other[:seeds, order])


@dataclass(frozen=True)
class Claim:
    """A sentence that measurements decide on; ``docs/claims.md`` says what would make each fail.

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
        of_inverses: it is about what inverses paint: one that is not trained must not have it as well.
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
    of_inverses: bool = True

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
    **more: Any,
) -> Iterator[Claim]:
    """A claim about a detector, and the same about a ViT, which ``{}`` in the statement stands for."""
    for short, kind, role in (("detr", "a detector", DETECTOR), ("vit", "a ViT", CLASSIFIER)):
        yield Claim(f"{name}-{short}", statement.format(kind), source, experiment, (role,), compare, unit, **more)

"""Inverses whose pictures say little of the image: undertrained, or of a stage that has kept nothing they can read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backsight.chain import ChainEnsemble
from backsight.core import Key, entry_title
from backsight.io import read_json_lines, read_record
from backsight.results import LAYER_ERROR, MEAN_IMAGE, Result
from backsight.validation import Record

NO_BETTER = 0.95
"""The share of the error of the mean image (or of the mean of an inverse's own target) from which an inverse says
little of the image."""

STILL_FALLING = 0.03
"""By how much of itself a loss falls in the last tenth of the training that should have gone on."""

_FIX = "restore it, or make it again"


def weak_inverses(ensemble: ChainEnsemble) -> dict[str, str]:
    """Why the pictures of an entry say little, in words, for those that do; by what was measured when it was trained.

    Empty where nothing was kept of that.

    >>> import backsight as bs
    >>> weak_inverses(bs.ChainEnsemble.from_pretrained("zoo/detr-independent"))["prediction"]
    'its pictures are no closer than the mean image (115 % of its error)'

    Raises:
        UserError: a file of the run is damaged.
    """
    for folder in ensemble.run_folders:
        if (folder / "evaluation.json").is_file():
            errors = Result.load(folder / "evaluation.json")
            return {**still_falling(read_json_lines(folder / "metrics.jsonl")[0]), **no_better(errors)}
        if (folder / "card.json").is_file():
            relative = read_record(folder / "card.json", _Card, _FIX).chains.relative
            means = {entry: sum(values) / len(values) for entry, values in relative.items()}
            return {entry: _image(share) for entry, share in means.items() if share >= NO_BETTER}
    return {}


def weak_in_words(weak: Mapping[str, str]) -> list[str]:
    """A sentence for each weak inverse.

    >>> weak_in_words({"prediction@onehot": "it is undertrained"})
    ['The inverse of prediction (likeliest class) says little of an image: it is undertrained.']
    """
    return [f"The inverse of {entry_title(entry)} says little of an image: {why}." for entry, why in weak.items()]


def no_better(errors: Result) -> dict[str, str]:
    """The entries whose error is near that of a mean that knows nothing: of the images, or of their own targets."""
    found = {}
    guess = _mean(errors, MEAN_IMAGE, "mse")
    for entry in errors.values_of("stage"):
        layer, share = _mean(errors, entry, LAYER_ERROR), _mean(errors, entry, "mse") / guess
        if layer >= NO_BETTER:
            own = f"its own error is {100 * layer:.0f} % of what the mean of its target has"
            found[entry] = f"it is undertrained, or its stage keeps nothing it can read: {own}"
        elif share >= NO_BETTER and entry != MEAN_IMAGE:
            found[entry] = _image(share)
    return found


def still_falling(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The entries whose loss on the validation images still fell when their training ended, by the lines of a run's
    ``metrics.jsonl``."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        losses: dict[str, list[float]] = {}
        for name, loss in record.get("validation", {}).items():
            losses.setdefault(Key.parse(name).entry, []).append(loss)
        for entry, values in losses.items():
            curves.setdefault(entry, []).append((record["step"], sum(values) / len(values)))
    falls = {entry: _last_fall(curve) for entry, curve in curves.items()}
    return {
        entry: f"it is undertrained: its loss still fell, by {100 * fall:.0f} % in the last tenth of the training"
        for entry, fall in falls.items()
        if fall >= STILL_FALLING
    }


def _last_fall(curve: Sequence[tuple[int, float]]) -> float:
    """By how much of itself the loss fell in the last tenth of the steps; 0 where too little is known of it."""
    last, loss = curve[-1]
    before = [each for each in curve if each[0] <= 0.9 * last]
    if not before or not loss > 0 or not math.isfinite(loss):
        return 0.0
    step, earlier = before[-1]
    return (1 - loss / earlier) * 0.1 * last / (last - step) if math.isfinite(earlier) and earlier > 0 else 0.0


def _image(share: float) -> str:
    return f"its pictures are no closer than the mean image ({100 * share:.0f} % of its error)"


def _mean(errors: Result, stage: str, metric: str) -> float:
    found = errors.select(stage=stage, metric=metric)
    return found[0].mean() if found else math.nan


@dataclass(frozen=True)
class _Chains(Record):
    relative: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Card(Record):
    """What the ``card.json`` of a shipped model says of its chains."""

    chains: _Chains = field(default_factory=_Chains)

"""What a user chose: an experiment, and models, their chains and data, side by side."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backsight.core import UserError
from backsight.experiments import EXPERIMENTS, Experiment


@dataclass(frozen=True)
class Choice:
    """A model to look at, as :func:`~backsight.experiments.opening.open_subject` takes it; None for its default."""

    model: str | None = None
    chain: str | None = None
    data: str | None = None


def choose(models: Sequence[str], chains: Sequence[str | Path], data: Sequence[str]) -> list[Choice]:
    """One for each model, or for each chain where no model is named.

    Args:
        models: their names.
        chains: none, or one for each.
        data: none, one for all, or one for each.

    Raises:
        UserError: their numbers do not fit.
    """
    num = len(models) or len(chains)
    if len(chains) not in (0, num):
        raise UserError(f"{len(models)} models and {len(chains)} chains: name a chain for each model, or none")
    if len(data) not in (0, 1, num):
        raise UserError(f"{num} models and {len(data)} data: name one for all, one for each, or none")
    columns = ([*models] or [None] * num, [str(each) for each in chains] or [None] * num, [*data] or [None])
    every = columns[2] * num if len(columns[2]) == 1 else columns[2]
    return [Choice(*row) for row in zip(columns[0], columns[1], every, strict=True)]


def find_experiment(name: str) -> Experiment:
    """The experiment called ``name``.

    Raises:
        UserError: there is none; the nearest name is offered.
    """
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    near = difflib.get_close_matches(name.replace("-", "_"), EXPERIMENTS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(EXPERIMENTS)}"
    raise UserError(f"no experiment '{name}': {hint}")

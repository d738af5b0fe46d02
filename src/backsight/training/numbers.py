"""The numbers among a run's options, refused where they mean nothing."""

from __future__ import annotations

from collections.abc import Mapping

from backsight.core import UserError
from backsight.options import TrainOptions
from backsight.training.budget import check_budget

LEAST: Mapping[str, int] = {
    "seeds": 1,
    "batch_size": 1,
    "max_validation": 1,
    "max_test": 1,
    "keep_checkpoints": 1,
    "evaluate_every": 1,
    "checkpoint_every": 0,
    "workers": 0,
    "seed": 0,
}
"""The least that an option may be."""


def check_numbers(options: TrainOptions) -> None:
    """Refuse numbers out of range, before anything is loaded.

    Raises:
        UserError: one of them, in one line.
    """
    for name, least in LEAST.items():
        value = getattr(options, name)
        if value is not None and not least <= value:  # nan neither
            raise UserError(f"--{name.replace('_', '-')} {value}: it has to be at least {least}")
    check_budget(options.steps, options.epochs, options.minutes)

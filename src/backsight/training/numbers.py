"""The numbers among a run's options, refused where they mean nothing."""

from __future__ import annotations

from collections.abc import Mapping

from backsight.core import UserError, expect_positive
from backsight.options import TrainOptions

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


def check_budget(steps: int | None, epochs: float | None, minutes: float | None) -> None:
    """Refuse an end of the run that never comes, or that is there at the beginning.

    Raises:
        UserError: more than one of them is given, or one that is not positive and finite.
    """
    given = {"steps": steps, "epochs": epochs, "minutes": minutes}
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} both end the run: give one of --steps, --epochs and --minutes")
    for name, value in given.items():
        expect_positive(name, value)


def check_stream(options: TrainOptions) -> None:
    """Refuse what a data set without a length cannot give.

    Raises:
        UserError: one of the options, in one line.
    """
    if options.data.partition(":")[0] not in ("stream", "wds"):
        return
    if options.steps is None and options.minutes is None:
        raise UserError(
            f"'{options.data}' is a stream without a length, so it has no epochs: give --steps or --minutes"
        )
    for name in ("image_cache", "feature_cache"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} keeps images that come again, and a stream's are not known")
    if options.task == "joint":
        raise UserError("joint training needs data that can be read in any order: a stream cannot")

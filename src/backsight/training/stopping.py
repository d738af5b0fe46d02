"""When a loss is no longer a number: its networks stop at their last good weights, the others go on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from backsight.core import UserError
from backsight.training.run_folder import RunFolder


class NotFinite(UserError):
    """Some networks stopped before the end of a run, which is finished: their losses were not finite."""


def snapshot(network: nn.Module, error: float, step: int) -> dict[str, Any]:
    """The weights of ``network`` after ``step`` batches, with its ``error`` on the validation images."""
    weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    return {"error": error, "step": step, "weights": weights}


def is_finite(weights: Mapping[str, Tensor]) -> bool:
    """Whether all of them are numbers."""
    return all(bool(value.isfinite().all()) for value in weights.values())


def good_weights(name: str, best: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    """The weights that the network ``name`` is left with, as :func:`snapshot` has them.

    They are its best on the validation images so far; before there are such, those of the newest checkpoint.

    Raises:
        UserError: there are none that are finite.
    """
    checkpoint = {} if name in best else folder.load_checkpoint() or {}
    weights = checkpoint.get("networks", {}).get(name)
    kept = best.get(name) or (weights and {"error": math.inf, "step": checkpoint["state"]["step"], "weights": weights})
    if not kept or not is_finite(kept["weights"]):
        raise UserError(f"{title(name)} has no finite weights to go back to: begin again with --overwrite")
    return kept


def title(name: str) -> str:
    """``0/encoder`` in words."""
    seed, _, entry = name.partition("/")
    return f"'{entry}' (seed {seed})"


def news(name: str, stopped: Mapping[str, Any], step: int) -> str:
    """The line that says that the network ``name`` has ``stopped``, and that it has the weights of ``step``."""
    return (
        f"{title(name)} stops: its loss is {stopped['value']} at step {stopped['step']}. It keeps its good weights of "
        f"step {step}; the other networks go on as if nothing had happened"
    )


def summary(stopped: Mapping[str, Mapping[str, Any]]) -> str:
    """The stopped networks in one line, and what may help."""
    entry = next(iter(stopped)).partition("/")[2]
    named = ", ".join(f"{title(name)} at step {each['step']}" for name, each in stopped.items())
    return f"{named}; lower the learning rate, as --inverse {entry}=NAME:learning_rate=1e-4, or use --precision fp32"

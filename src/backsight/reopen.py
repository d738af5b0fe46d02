"""A trained run -> the forward model that its chains were trained on, checked to be the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from backsight.chain import ChainEnsemble
from backsight.core import Pixels, UserError
from backsight.models import is_own, load_model, place
from backsight.staging import RANDOM, StagedModel

_BY_NAME = "add --model FILE.py:FUNCTION, or reconstruct(..., model=...) in Python"


def open_forward_model(
    ensemble: ChainEnsemble, device: torch.device | str = "cpu", given: StagedModel | str | None = None
) -> StagedModel:
    """Load the forward model of ``ensemble`` again, by the name, size, weights, pixels and spec that its chains keep.

    ``given`` is the model itself, or the name to take in place of that which the chains keep.

    Raises:
        UserError: it is not to be had any more, or its weights are not those that the chains were trained on.
    """
    if isinstance(given, StagedModel):
        ensemble.to(device).check(given.to(device))
        return given
    known = ensemble.model
    file = known["weights"] if Path(known["weights"]).is_file() else None
    random = known["weights"] == RANDOM
    name = given or _name(known)
    spec = known.get("reopen", {}).get("spec") if is_own(name) else None
    options = {"weights": file, "random_weights": random, "spec": spec, "device": device}
    model = load_model(name, size=tuple(known["size"]), **options)
    model.pixels = _pixels(known["pixels"])
    ensemble.to(device).check(model)
    return model


def _name(known: Mapping[str, Any]) -> str:
    """The name that a chain keeps, unless it would run code from a place that nobody named on this machine.

    A chain may come from anywhere, and with it a name such as ``my_module.py:build``. Such a file is run again only if
    it lies where it lay when its owner named it: the chain keeps a digest of that place, which others do not know.
    """
    name = known["name"]
    if "reopen" in known or is_own(name):
        if not is_own(name):
            raise UserError(f"these chains invert a model that was given in Python ('{name}'): {_BY_NAME}")
        if known.get("reopen", {}).get("place") != place(name):
            raise UserError(
                f"these chains invert {name} of another folder, and code is run only if you name it: {_BY_NAME}"
            )
    return name


def _pixels(saved: Mapping[str, Any]) -> Pixels:
    """The pixels that a chain's index keeps, which may be other than the model's own: JSON's lists are tuples again."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    return Pixels(**values)

"""A trained run -> the forward model that its chains were trained on, checked to be the same."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backsight.chain import ChainEnsemble, InverseChain
from backsight.core import Pixels, UserError
from backsight.engine import RANDOM, StagedModel
from backsight.io import digest
from backsight.models import is_own, load_model, place
from backsight.models.checkpoints import fill, read_state, split_part
from backsight.validation import build

_BY_NAME = "add --model FILE.py:FUNCTION, or reconstruct(..., model=...) in Python"


def open_forward_model(
    ensemble: ChainEnsemble, device: torch.device | str = "cpu", given: StagedModel | str | None = None
) -> StagedModel:
    """Load the forward model of ``ensemble`` again, by the name, size, weights, pixels and spec that its chains keep.

    ``given`` is the model itself, or the name to take in place of that which the chains keep.

    A run of joint training holds a forward model for each chain, in ``forward/<seed>`` beside ``chains/<seed>``.

    Raises:
        UserError: it is not to be had any more, its weights are not those that the chains were trained on, or every
            chain has another one.
    """
    if isinstance(given, StagedModel):
        ensemble.to(device).check(given.to(device))
        return given
    known = ensemble.model
    words = known["weights"]
    file = words if not is_own(words) and os.path.isfile(split_part(words)[0]) else None  # noqa: PTH113  (odd names)
    random = known["weights"] == RANDOM
    name = given or _name(known)
    spec = known.get("reopen", {}).get("spec")
    options = {"weights": file, "random_weights": random, "spec": spec, "device": device}
    model = load_model(name, size=tuple(known["size"]), **options)
    model.pixels = build(Pixels, known["pixels"], "'pixels' of the chain")
    if "fine_tuned" in known:
        _fine_tuned(model, ensemble.chains)
    ensemble.to(device).check(model)
    return model


def _fine_tuned(model: StagedModel, chains: Sequence[InverseChain]) -> None:
    """Put the weights into ``model`` that were trained together with the chain."""
    folder, seed = chains[0].folder, chains[0].seed
    if len(chains) > 1:
        raise UserError(
            "joint training gave every seed a forward model of its own: name the chain of one, as RUN/chains/"
            f"{seed} (there are {', '.join(str(chain.seed) for chain in chains)})"
        )
    if folder is None:
        raise UserError("this chain's forward model was trained with it: load the chain from the folder of its run")
    path = folder.resolve().parent.parent / "forward" / str(seed) / "model.safetensors"
    if not path.is_file():
        raise UserError(f"no file {path}: the chain was trained jointly with this forward model, keep them together")
    if digest(path) != chains[0].model["fine_tuned"]["sha256"]:
        raise UserError(f"{path} is damaged (its SHA-256 is not the one in chain.json): copy it again, or train again")
    fill(model.module, read_state(path), str(path))
    model.weights = model.weights if model.weights == RANDOM else f"{model.weights}, trained jointly with the chain"


def _name(known: Mapping[str, Any]) -> str:
    """The name that a chain keeps, unless it would run code from a place that nobody named on this machine.

    A chain may come from anywhere, and with it a name such as ``my_module.py:build``. Such a file is run again only if
    it lies where it lay when its owner named it: the chain keeps a digest of that place, which others do not know.
    """
    name = known["name"]
    if ("reopen" in known and not known["reopen"].get("named")) or is_own(name):
        if not is_own(name):
            raise UserError(f"these chains invert a model that was given in Python ('{name}'): {_BY_NAME}")
        if known.get("reopen", {}).get("place") != place(name):
            raise UserError(
                f"these chains invert {name} of another folder, and code is run only if you name it: {_BY_NAME}"
            )
    return name

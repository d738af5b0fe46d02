"""A trained run -> the forward model that its chains were trained on, checked to be the same."""

from __future__ import annotations

from pathlib import Path

import torch

from backsight.chain import ChainEnsemble
from backsight.models import load_model
from backsight.staging import RANDOM, StagedModel


def open_forward_model(ensemble: ChainEnsemble, device: torch.device | str = "cpu") -> StagedModel:
    """Load the forward model of ``ensemble`` again, by the name, size and weights that its chains keep.

    Raises:
        UserError: it is not to be had any more, or its weights are not those that the chains were trained on.
    """
    known = ensemble.model
    file = known["weights"] if Path(known["weights"]).is_file() else None
    random = known["weights"] == RANDOM
    model = load_model(known["name"], size=tuple(known["size"]), weights=file, random_weights=random, device=device)
    ensemble.to(device).check(model)
    return model

"""A forward model twice: a copy with weights of its own, to be trained or changed while the original stays as it is."""

from __future__ import annotations

import copy
from typing import Any

from backsight.engine import StagedModel
from backsight.models.family import FamilyModel


def duplicate(model: StagedModel) -> StagedModel:
    """A staged model with weights of its own, equal to those of ``model``, and the same name, sites and pixels."""
    module = copy.deepcopy(model.module)
    same: dict[str, Any] = {"name": model.name, "weights": model.weights}
    same |= {"arguments": model.arguments, "reopen": model.reopen}
    if isinstance(model, FamilyModel):  # what it reads with, and its constants, are of the copied weights
        return FamilyModel(module, model.family, model.spec, model.pixels, **same)
    constants = {name: value.clone() for name, value in model.constants.items()}
    return StagedModel(module, model.spec, model.pixels, read=model.read, constants=constants, **same)

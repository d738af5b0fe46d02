"""A forward model twice: a copy with weights of its own, to be trained or changed while the original stays as it is."""

from __future__ import annotations

import copy

from backsight.models.load import stage_module
from backsight.models.registry import MODELS
from backsight.staging import StagedModel


def duplicate(model: StagedModel) -> StagedModel:
    """A staged model with weights of its own, equal to those of ``model``, and the same name, sites and pixels."""
    module, name, weights = copy.deepcopy(model.module), model.name, model.weights
    family = MODELS.get(model.spec.family)
    if family is not None and not model.reopen:
        return stage_module(module, family, model.pixels, name=name, weights=weights)
    others = {"read": model.read, "arguments": model.arguments, "reopen": model.reopen}
    return StagedModel(module, model.spec, model.pixels, name=name, weights=weights, **others)

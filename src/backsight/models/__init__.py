"""Every family of forward models; `load_model` finds one by name, folder or file, `stage` stages your own."""

from __future__ import annotations

from backsight.models.custom import is_own, place
from backsight.models.family import Family, duplicate
from backsight.models.load import blueprint, load_model, stage, stage_module
from backsight.models.propose import propose, propose_for
from backsight.models.registry import MODELS
from backsight.models.vit import VIT
from backsight.models.vocabulary import vocabulary

__all__ = [
    "MODELS",
    "VIT",
    "Family",
    "blueprint",
    "duplicate",
    "is_own",
    "load_model",
    "place",
    "propose",
    "propose_for",
    "stage",
    "stage_module",
    "vocabulary",
]

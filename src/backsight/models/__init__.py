"""Every family of forward models, and :func:`load_model`, which finds one by name, folder or file."""

from __future__ import annotations

from backsight.models.detr import DETR
from backsight.models.family import Family
from backsight.models.load import load_model, stage_module
from backsight.models.registry import MODELS
from backsight.models.swin import SWIN
from backsight.models.vit import VIT

__all__ = ["DETR", "MODELS", "SWIN", "VIT", "Family", "load_model", "stage_module"]

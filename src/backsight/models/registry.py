"""The families there are: a new one is one file beside this one, and one line here."""

from __future__ import annotations

from backsight.models.detr import DETR
from backsight.models.family import Family
from backsight.models.swin import SWIN
from backsight.models.vit import VIT

MODELS: dict[str, Family] = {family.name: family for family in (VIT, SWIN, DETR)}

"""The families there are: a new one is one file beside this one, and one line here."""

from __future__ import annotations

from backsight.models.conditional_detr import CONDITIONAL_DETR
from backsight.models.convnet import CONVNEXT, RESNET
from backsight.models.d_fine import D_FINE
from backsight.models.dab_detr import DAB_DETR
from backsight.models.deformable_detr import DEFORMABLE_DETR
from backsight.models.detr import DETR
from backsight.models.dinov2 import DINOV2, DINOV2_WITH_REGISTERS
from backsight.models.eva import EVA
from backsight.models.family import Family
from backsight.models.grounding_dino import GROUNDING_DINO
from backsight.models.lw_detr import LW_DETR
from backsight.models.rf_detr import RF_DETR
from backsight.models.rt_detr import RT_DETR, RT_DETR_V2
from backsight.models.swin import SWIN
from backsight.models.table_transformer import TABLE_TRANSFORMER
from backsight.models.vit import VIT
from backsight.models.vit_transformers import VIT_TRANSFORMERS
from backsight.models.yolos import YOLOS

_CLASSIFIERS = (VIT, EVA, SWIN, RESNET, CONVNEXT, VIT_TRANSFORMERS, DINOV2, DINOV2_WITH_REGISTERS)
_LIKE_DETR = (DETR, TABLE_TRANSFORMER, CONDITIONAL_DETR, DAB_DETR)
_LIKE_DEFORMABLE_DETR = (DEFORMABLE_DETR, RT_DETR, RT_DETR_V2, D_FINE, GROUNDING_DINO)
_DETECTORS = (*_LIKE_DETR, *_LIKE_DEFORMABLE_DETR, YOLOS, LW_DETR, RF_DETR)

MODELS: dict[str, Family] = {family.name: family for family in (*_CLASSIFIERS, *_DETECTORS)}

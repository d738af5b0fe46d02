"""Hugging Face's Conditional DETR: built like DETR, with a score for every class by itself."""

from __future__ import annotations

from functools import partial
from typing import Any

from backsight.core import Spec
from backsight.models.detection import prediction_stage, read_with
from backsight.models.detr import small, stages_before
from backsight.models.family import Family


def stage(module: Any) -> Spec:
    """As in DETR. Prediction: an independent score for every class, and boxes, of every query."""
    return stages_before(module, prediction_stage(module.config.num_labels, "sigmoid"))


CONDITIONAL_DETR = Family(
    name="conditional_detr",
    library="transformers",
    kind="conditional_detr",
    names={"conditional-detr-resnet-50": "microsoft/conditional-detr-resnet-50"},
    stage=stage,
    read=partial(read_with, "ConditionalDetrImageProcessor"),
    small=partial(small, "conditional_detr"),
    configure={"conditional-detr-resnet-50": {"num_labels": 91}},
    size=(480, 640),
)

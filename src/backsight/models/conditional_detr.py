"""Hugging Face's Conditional DETR: built like DETR, with a score for every class by itself."""

from __future__ import annotations

from functools import partial
from typing import Any

from backsight.core import Spec
from backsight.models.detection import prediction_stage, read_with
from backsight.models.detr import small, stages_before
from backsight.models.family import Family, Read


def stage(module: Any) -> Spec:
    """As in DETR. Prediction: an independent score for every class, and boxes, of every query."""
    return stages_before(module, prediction_stage(module.config.num_labels, "sigmoid"))


def read_detections(module: Any) -> Read:
    """The 100 best pairs of query and class, through the library's own post-processing."""
    from transformers import ConditionalDetrImageProcessor

    return read_with(ConditionalDetrImageProcessor(), module)


CONDITIONAL_DETR = Family(
    name="conditional_detr",
    library="transformers",
    kind="conditional_detr",
    names={"conditional-detr-resnet-50": "microsoft/conditional-detr-resnet-50"},
    stage=stage,
    read=read_detections,
    small=partial(small, "conditional_detr"),
    configure={"conditional-detr-resnet-50": {"num_labels": 91}},
    size=(480, 640),
)

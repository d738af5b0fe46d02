"""Hugging Face's Table Transformer: DETR with norms before its layers, which answer in tuples."""

from __future__ import annotations

from functools import partial
from typing import Any

from backsight.core import Spec
from backsight.models.detection import prediction_stage, read_with
from backsight.models.detr import small, stages_before
from backsight.models.family import Family


def stage(module: Any) -> Spec:
    """As in DETR."""
    return stages_before(module, prediction_stage(module.config.num_labels + 1), field=0)


TABLE_TRANSFORMER = Family(
    name="table_transformer",
    library="transformers",
    kind="table-transformer",
    names={"table-transformer-detection": "microsoft/table-transformer-detection"},
    stage=stage,
    read=partial(read_with, "DetrImageProcessor"),
    small=partial(small, "table-transformer"),
    configure={"table-transformer-detection": {"num_labels": 2, "num_queries": 15, "backbone": "resnet18"}},
    size=(480, 640),
)

"""Hugging Face's DAB-DETR: built like Conditional DETR, its queries are boxes that every layer refines."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from backsight.core import Site, Spec
from backsight.models.detection import prediction_stage, read_with
from backsight.models.detr import SMALL_BACKBONE, stages_before
from backsight.models.family import Family


def stage(module: Any) -> Spec:
    """As in DETR. The heads read what the norm makes of the last layer, before it is run once more for an output that
    nothing reads. Prediction: an independent score for every class, and boxes, of every query.
    """
    decoded = Site("model.decoder.layernorm", call=module.config.decoder_layers - 1)
    return stages_before(module, prediction_stage(module.config.num_labels, "sigmoid"), field=0, decoder=decoded)


def small() -> nn.Module:
    """A tiny DAB-DETR on a tiny ResNet."""
    from transformers import DabDetrConfig, DabDetrForObjectDetection, ResNetConfig

    options: dict[str, Any] = {
        "backbone_config": ResNetConfig(**SMALL_BACKBONE),
        **{"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
        **{"hidden_size": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 7, "num_labels": 4},
    }
    return DabDetrForObjectDetection(DabDetrConfig(**options))


DAB_DETR = Family(
    name="dab_detr",
    library="transformers",
    kind="dab-detr",
    names={"dab-detr-resnet-50": "IDEA-Research/dab-detr-resnet-50"},
    stage=stage,
    read=partial(read_with, "ConditionalDetrImageProcessor"),
    small=small,
    configure={"dab-detr-resnet-50": {"num_labels": 91}},
    size=(480, 640),
)

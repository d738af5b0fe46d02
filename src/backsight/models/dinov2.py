"""Hugging Face's DINOv2, without registers and with them: features alone, or a classifier on top."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from backsight.core import Spec
from backsight.models.family import Family
from backsight.models.vit import stages_of
from backsight.models.vit_transformers import body_of, read_logits


def stage(module: Any) -> Spec:
    """Backbone: the tokens after patch and position embedding. Encoder: after the last layer, before the final norm."""
    config, body = module.config, body_of(module)
    prefix = 1 + getattr(config, "num_register_tokens", 0)
    layers = [f"{body}encoder.layer.{index}" for index in range(config.num_hidden_layers)]
    mirror = {"heads": config.num_attention_heads, "mlp_ratio": float(config.mlp_ratio)}
    classifies = hasattr(module, "classifier")
    return stages_of(config.model_type, f"{body}embeddings", layers, mirror, prefix, classifies=classifies)


def small(kind: str) -> nn.Module:
    """Three layers of width 32 on 48 x 48 pixels, with a classifier."""
    from transformers import AutoConfig, AutoModelForImageClassification

    sizes: dict[str, Any] = {"image_size": 48, "patch_size": 8, "hidden_size": 32, "mlp_ratio": 2}
    config = AutoConfig.for_model(kind, **sizes, num_hidden_layers=3, num_attention_heads=2, num_labels=5)
    return AutoModelForImageClassification.from_config(config)


def _family(kind: str, short: str, architecture: str) -> Family:
    features = {"image_size": 518, "patch_size": 14, "architectures": [architecture]}
    return Family(
        name=kind,
        library="transformers",
        kind=kind,
        names={f"{short}-base": f"facebook/{short}-base"},
        stage=stage,
        read=read_logits,
        small=partial(small, kind),
        configure={f"{short}-base": features},
        preprocess={f"{short}-base": {"resample": 3, "size": {"shortest_edge": 256}, "crop_size": 224}},
    )


DINOV2 = _family("dinov2", "dinov2", "Dinov2Model")
DINOV2_WITH_REGISTERS = _family("dinov2_with_registers", "dinov2-with-registers", "Dinov2WithRegistersModel")

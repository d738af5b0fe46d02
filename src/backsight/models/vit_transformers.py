"""Hugging Face's ViT: the original one, and all that is saved as ``vit`` (DINO, fine-tuned classifiers)."""

from __future__ import annotations

from typing import Any

from torch import nn

from backsight.core import Classes, Spec
from backsight.models.family import Family, Read
from backsight.models.vit import stages_of


def stage(module: Any) -> Spec:
    """Backbone: the tokens after patch and position embedding. Encoder: after the last layer, before the final norm."""
    config, body = module.config, body_of(module)
    layers = [f"{body}layers.{index}" for index in range(config.num_hidden_layers)]
    mirror = {"heads": config.num_attention_heads, "mlp_ratio": config.intermediate_size / config.hidden_size}
    classifies = hasattr(module, "classifier")
    return stages_of("vit-transformers", f"{body}embeddings", layers, mirror, 1, classifies=classifies)


def body_of(module: Any) -> str:
    """Where the model without its head begins: ``vit.`` in a classifier, nothing in a bare model."""
    return "" if module.base_model is module else f"{module.base_model_prefix}."


def read_logits(module: Any) -> Read:
    """The field ``logits`` ``B C``, with the configuration's own names of the classes."""
    labels = dict(module.config.id2label)
    return lambda output, _: Classes(output.logits, labels)


def small() -> nn.Module:
    """Three layers of width 32 on 48 x 48 pixels."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {"image_size": 48, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 3, "num_attention_heads": 2, "num_labels": 5}
    return ViTForImageClassification(ViTConfig(**sizes))


VIT_TRANSFORMERS = Family(
    name="vit-transformers",
    library="transformers",
    kind="vit",
    names={"vit-base-patch16-224": "google/vit-base-patch16-224", "dino-vitb16": "facebook/dino-vitb16"},
    stage=stage,
    read=read_logits,
    small=small,
    configure={
        "vit-base-patch16-224": {"num_labels": 1000, "architectures": ["ViTForImageClassification"]},
        "dino-vitb16": {"architectures": ["ViTModel"]},
    },
    preprocess={"vit-base-patch16-224": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}},
    arguments={"interpolate_pos_encoding": True},  # exact at the model's own size, and any other size is possible
)

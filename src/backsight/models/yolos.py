"""Hugging Face's YOLOS: a ViT whose last tokens are detections."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from backsight.core import Site, Spec, Stage
from backsight.models.detection import prediction_stage, read_with
from backsight.models.family import Family


def stage(module: Any) -> Spec:
    """Backbone: the tokens after patch and position embedding. Encoder: after the last layer, before the final norm.
    Decoder: of what leaves the norm, the detection tokens, all that the heads read.

    The library has the class token, the grid, the detection tokens in a row; here the detection tokens come first.
    """
    config = module.config
    queries = config.num_detection_tokens
    row: dict[str, Any] = {"tokens": ((-queries, None), (None, -queries))}
    layers = tuple(Site(f"vit.encoder.layer.{index}", **row) for index in range(config.num_hidden_layers))
    heads = config.num_attention_heads
    blocks = {"depth": len(layers), "heads": heads, "mlp_ratio": config.intermediate_size / config.hidden_size}
    reading = {"depth": 6, "heads": heads, "feedforward": config.intermediate_size}
    detections = replace(Site("vit.layernorm"), tokens=((-queries, None),))
    return Spec(
        family="yolos",
        task="detect",
        stages=(
            Stage("backbone", (Site("vit.embeddings", **row),), inverses={"": ("patch", {})}, prefix=queries + 1),
            Stage("encoder", layers[-1:], layers, {"": ("blocks", blocks)}, prefix=queries + 1),
            Stage("decoder", (detections,), inverses={"": ("decoder", reading)}, gridded=False),
            prediction_stage(config.num_labels + 1),
        ),
    )


def small() -> nn.Module:
    """Three layers of width 32 on 48 x 64 pixels, seven detection tokens."""
    from transformers import YolosConfig, YolosForObjectDetection

    sizes: dict[str, Any] = {"image_size": [48, 64], "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    options: dict[str, Any] = {"num_detection_tokens": 7, "num_labels": 4}
    return YolosForObjectDetection(YolosConfig(**sizes, **options, num_hidden_layers=3, num_attention_heads=2))


_TINY = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3, "use_mid_position_embeddings": False}
_SMALL = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}

YOLOS = Family(
    name="yolos",
    library="transformers",
    kind="yolos",
    names={f"yolos-{size}": f"hustvl/yolos-{size}" for size in ("tiny", "small", "base")},
    stage=stage,
    read=partial(read_with, "YolosImageProcessor"),
    small=small,
    configure={
        "yolos-tiny": {"num_labels": 91, "image_size": [800, 1333], **_TINY},
        "yolos-small": {"num_labels": 91, **_SMALL},
        "yolos-base": {"num_labels": 91, "image_size": [800, 1344]},
    },
    size=(512, 864),
)

"""Hugging Face's Deformable DETR: plain, with refined boxes, in two stages. Its encoder keeps several resolutions."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from backsight.core import Site, Spec, Stage
from backsight.models.detection import deformable_stages, expect_tokens, layer_sites, mirror, read_with
from backsight.models.detr import SMALL_BACKBONE
from backsight.models.family import Family


def stage(module: Any) -> Spec:
    """Backbone: the projected maps of all levels. Prediction: an independent score for every class, and boxes.

    The decoder's site is its last layer: ``decoder.last_hidden_state`` is a copy that no head reads.
    """
    config, levels = module.config, module.config.num_feature_levels
    mixing = mirror(config, "encoder", points=config.encoder_n_points)
    layers = layer_sites("model.encoder", config.encoder_layers)
    maps = (Site("model.encoder", "input", "inputs_embeds"),)
    return deformable_stages(
        config,
        Stage("backbone", maps, inverses={"": ("pyramid", {})}, levels=levels),
        Stage("encoder", layers[-1:], layers, {"": ("deformable_encoder", mixing)}, levels=levels),
        mirror(config, "decoder", points=config.decoder_n_points),
    )


def check_size(module: Any, size: tuple[int, int]) -> None:
    """In two stages, queries start at tokens: there must be enough."""
    config = module.config
    if config.two_stage:
        strides = [8 * 2**level for level in range(config.num_feature_levels)]
        expect_tokens("Deformable DETR in two stages", size, strides, config.two_stage_num_proposals)


def small(**variant: bool) -> nn.Module:
    """A tiny Deformable DETR: four levels of width 32, two layers each, seven queries; ``variant`` as the library's."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

    backbone = {**SMALL_BACKBONE, "out_features": ["stage2", "stage3", "stage4"]}
    options: dict[str, Any] = {
        **{"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
        **{"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_n_points": 2, "decoder_n_points": 2},
        **{"num_queries": 7, "two_stage_num_proposals": 7, "num_labels": 4, **variant},
    }
    return DeformableDetrForObjectDetection(DeformableDetrConfig(backbone_config=ResNetConfig(**backbone), **options))


_VARIANTS: dict[str, dict[str, Any]] = {
    "deformable-detr": {"num_labels": 91},
    "deformable-detr-with-box-refine": {"num_labels": 91, "with_box_refine": True},
    "deformable-detr-with-box-refine-two-stage": {"num_labels": 91, "with_box_refine": True, "two_stage": True},
}

DEFORMABLE_DETR = Family(
    name="deformable_detr",
    library="transformers",
    kind="deformable_detr",
    names={short: f"SenseTime/{short}" for short in _VARIANTS},
    stage=stage,
    read=partial(read_with, "DeformableDetrImageProcessor"),
    small=small,
    configure=_VARIANTS,
    size=(480, 640),
    check_size=check_size,
)

"""Hugging Face's RT-DETR and RT-DETRv2, and what D-FINE has of them."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from backsight.core import Site, Spec, Stage
from backsight.models.detection import deformable_stages, expect_multiples, expect_tokens, mirror, read_with
from backsight.models.family import Family


def stage(module: Any) -> Spec:
    """Backbone: the projected maps. Encoder: the maps after attention on the coarsest, then fusion up and down; after
    each of these steps, all maps. Decoder: its last layer, which the heads read.
    """
    config, points = module.config, module.config.decoder_n_points
    points = points if isinstance(points, int) else max(1, round(sum(points) / len(points)))
    backbone, *layers = encoder_cuts(config)
    mixing = {**mirror(config, "encoder", points=points), "depth": len(layers)}
    return deformable_stages(
        config,
        Stage("backbone", backbone, inverses={"": ("pyramid", {})}),
        Stage("encoder", layers[-1], tuple(layers), {"": ("deformable_encoder", mixing)}),
        mirror(config, "decoder", points=points),
    )


def encoder_cuts(config: Any) -> list[tuple[Site, ...]]:
    """The maps, the finest first, before the encoder and after each of its steps: where they stand, one module each."""
    levels = len(config.encoder_in_channels)
    maps = [f"encoder_input_proj.{level}" for level in range(levels)]
    attended = config.encode_proj_layers if config.encoder_layers else ()
    steps: list[dict[int, str]] = [{}, *({level: f"encoder.aifi.{index}"} for index, level in enumerate(attended))]
    for index, level in enumerate(range(levels - 1, 0, -1)):  # up: the coarser map is narrowed before it is fused
        steps.append({level: f"encoder.lateral_convs.{index}", level - 1: f"encoder.fpn_blocks.{index}"})
    steps += [{level: f"encoder.pan_blocks.{level - 1}"} for level in range(1, levels)]
    cuts = []
    for step in steps:
        maps = [step.get(level, path) for level, path in enumerate(maps)]
        cuts.append(tuple(Site(f"model.{path}", pattern="b d h w") for path in maps))
    return cuts


def check_size(module: Any, size: tuple[int, int]) -> None:
    """Maps are doubled and joined, so every grid is half the one before; queries start at tokens."""
    config = module.config
    expect_multiples(config.model_type, size, max(config.feat_strides))
    expect_tokens(config.model_type, size, config.feat_strides, config.num_queries)


SMALL: dict[str, Any] = {
    **{"d_model": 32, "encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3, "encoder_ffn_dim": 48},
    **{"encoder_in_channels": [16, 16, 24], "encoder_attention_heads": 2, "decoder_attention_heads": 2},
    **{"decoder_ffn_dim": 48, "decoder_layers": 2, "decoder_n_points": 2, "num_queries": 7, "num_labels": 4},
}
"""What makes RT-DETRv2 and D-FINE tiny: three maps of width 32, two decoder layers, seven queries."""


def small(kind: str = "rt_detr_v2") -> nn.Module:
    """A tiny RT-DETRv2, or RT-DETR, on a tiny ResNet."""
    from transformers import AutoConfig, AutoModelForObjectDetection, RTDetrResNetConfig

    widths: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}
    backbone = RTDetrResNetConfig(**widths, **{"layer_type": "basic", "out_indices": [2, 3, 4]})
    return AutoModelForObjectDetection.from_config(AutoConfig.for_model(kind, backbone_config=backbone, **SMALL))


_SHALLOW: dict[str, Any] = {
    **{"model_type": "rt_detr_resnet", "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
    **{"depths": [2, 2, 2, 2], "out_indices": [2, 3, 4]},
}
_R18: dict[str, Any] = {
    **{"num_labels": 80, "backbone_config": _SHALLOW, "encoder_in_channels": [128, 256, 512]},
    **{"hidden_expansion": 0.5, "decoder_layers": 3},
}
PREPROCESS: dict[str, Any] = {"do_normalize": False, "size": {"height": 640, "width": 640}}
"""RT-DETR's and D-FINE's images keep their values in [0, 1]."""


def _family(name: str, short: str) -> Family:
    names = {f"{short}-{depth}": f"PekingU/{short.replace('-', '_')}_{depth}vd" for depth in ("r18", "r50")}
    return Family(
        name=name,
        library="transformers",
        kind=name,
        names=names,
        stage=stage,
        read=partial(read_with, "RTDetrImageProcessor"),
        small=partial(small, name),
        configure={f"{short}-r18": _R18, f"{short}-r50": {"num_labels": 80}},
        size=(640, 640),
        preprocess=dict.fromkeys(names, PREPROCESS),
        check_size=check_size,
    )


RT_DETR = _family("rt_detr", "rtdetr")
RT_DETR_V2 = _family("rt_detr_v2", "rtdetr-v2")

"""The stages of RT-DETRv2 and D-FINE: an encoder that attends on the coarsest map and fuses all of them, and queries
that start at the likeliest places."""

from __future__ import annotations

from typing import Any

from backsight.core import Site, Spec, Stage
from backsight.models.detection import layer_sites, mirror, prediction_stage
from backsight.models.sizes import expect_multiples, expect_tokens

MAP = "b d h w"


def stage(module: Any) -> Spec:
    """Backbone: the projected maps. Encoder: the maps after attention on the coarsest, then fusion up and down; after
    each of these steps, all maps. Decoder: its last layer, which the heads read.
    """
    config, points = module.config, module.config.decoder_n_points
    points = points if isinstance(points, int) else max(1, round(sum(points) / len(points)))
    backbone, *layers = encoder_cuts(config)
    mixing = {**mirror(config, "encoder", points=points), "depth": len(layers)}
    reading = mirror(config, "decoder", points=points)
    decoders = layer_sites("model.decoder", config.decoder_layers)
    return Spec(
        family=config.model_type,
        task="detect",
        stages=(
            Stage("backbone", backbone, inverses={"": ("pyramid", {})}),
            Stage("encoder", layers[-1], tuple(layers), {"": ("deformable_encoder", mixing)}),
            Stage("decoder", decoders[-1:], decoders, {"": ("deformable_decoder", reading)}, gridded=False),
            prediction_stage(config.num_labels, "sigmoid"),
        ),
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
        cuts.append(tuple(Site(f"model.{path}", pattern=MAP) for path in maps))
    return cuts


def check_size(module: Any, size: tuple[int, int]) -> None:
    """Maps are doubled and joined, so every grid is half the one before; queries start at tokens."""
    config = module.config
    expect_multiples(config.model_type, size, max(config.feat_strides))
    expect_tokens(config.model_type, size, config.feat_strides, config.num_queries)

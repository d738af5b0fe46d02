"""Hugging Face's Grounding DINO: built like Deformable DETR in two stages, with a text that its encoder reads along."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from backsight.core import Site, Spec, Stage
from backsight.models.answers import detections
from backsight.models.detection import expect_tokens, layer_sites, mirror
from backsight.models.family import Family
from backsight.models.spec import Answer


def stage(module: Any) -> Spec:
    """As in Deformable DETR, the tokens of the image alone: edits leave what the layers have made of the text as it is.
    No prediction: an image has a score for every token of the text, which is another with every text.
    """
    config, levels = module.config, module.config.num_feature_levels
    mixing, reading = (mirror(config, part, points=config.encoder_n_points) for part in ("encoder", "decoder"))
    encoded = layer_sites("model.encoder", config.encoder_layers, "0.0")
    decoded = layer_sites("model.decoder", config.decoder_layers, 0)
    maps = (Site("model.encoder", "input", "vision_features"),)
    return Spec(
        "grounding_dino",
        "detect",
        (
            Stage("backbone", maps, inverses={"": ("pyramid", {})}, levels=levels),
            Stage("encoder", encoded[-1:], encoded, {"": ("deformable_encoder", mixing)}, levels=levels),
            Stage("decoder", decoded[-1:], decoded, {"": ("deformable_decoder", reading)}, gridded=False),
        ),
    )


def check_size(module: Any, size: tuple[int, int]) -> None:
    """Queries start at tokens: there must be enough."""
    expect_tokens(
        "grounding_dino",
        size,
        [8 * 2**level for level in range(module.config.num_feature_levels)],
        module.config.num_queries,
    )


def small() -> nn.Module:
    """A tiny Grounding DINO on a tiny Swin and a tiny BERT: four levels of width 32, two layers each, seven queries."""
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    windows: dict[str, Any] = {"image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 2, 2, 4]}
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    options: dict[str, Any] = {
        "backbone_config": SwinConfig(**windows, window_size=4, out_indices=[2, 3, 4]),
        "text_config": BertConfig(**sizes, num_attention_heads=2, vocab_size=99, max_position_embeddings=16),
        **{"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
        **{"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 7, "max_text_len": 8},
    }
    return GroundingDinoForObjectDetection(GroundingDinoConfig(**options))


_BASE: dict[str, Any] = {
    **{"model_type": "swin", "image_size": 384, "embed_dim": 128, "depths": [2, 2, 18, 2], "window_size": 12},
    **{"num_heads": [4, 8, 16, 32], "out_indices": [2, 3, 4]},
}

GROUNDING_DINO = Family(
    name="grounding_dino",
    library="transformers",
    kind="grounding-dino",
    names={f"grounding-dino-{size}": f"IDEA-Research/grounding-dino-{size}" for size in ("tiny", "base")},
    stage=stage,
    read=lambda _: partial(detections, answer=Answer("logits", "pred_boxes", "sigmoid"), labels={}),
    small=small,
    configure={"grounding-dino-tiny": {}, "grounding-dino-base": {"backbone_config": _BASE}},
    size=(480, 640),
    check_size=check_size,
)

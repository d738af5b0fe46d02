"""Hugging Face's DETR: a convolutional backbone, a transformer encoder and decoder, one prediction for each query."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from backsight.core import Site, Spec, Stage
from backsight.models.detection import layer_sites, mirror, prediction_stage, read_with
from backsight.models.family import Family

DECODED = Site("model.decoder", field="last_hidden_state")
"""What the heads read of the decoder."""


def stage(module: Any) -> Spec:
    """Backbone: the projected feature map. Prediction: logits (the last is "no object") and boxes of every query."""
    return stages_before(module, prediction_stage(module.config.num_labels + 1))


def stages_before(module: Any, prediction: Stage, field: int | None = None, decoder: Site = DECODED) -> Spec:
    """The stages of DETR and of those built like it: backbone, encoder, ``decoder``, and their ``prediction``.

    ``field`` is that of a layer's answer which has its tokens, None where they are all of it.
    """
    config = module.config
    return Spec(
        family=config.model_type.replace("-", "_"),
        task="detect",
        stages=(
            Stage("backbone", (Site("model.encoder", "input", "inputs_embeds"),), inverses={"": ("deconvolution", {})}),
            Stage(
                "encoder",
                (Site("model.encoder", field="last_hidden_state"),),
                layer_sites("model.encoder", config.encoder_layers, field),
                inverses={"": ("encoder", mirror(config, "encoder"))},
            ),
            Stage(
                "decoder",
                (decoder,),
                layer_sites("model.decoder", config.decoder_layers, field),
                inverses={"": ("decoder", mirror(config, "decoder"))},
                gridded=False,
            ),
            prediction,
        ),
    )


SMALL_BACKBONE: dict[str, Any] = {
    **{"embedding_size": 8, "hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1], "layer_type": "basic"},
    **{"out_features": ["stage4"]},
}
"""What makes a ResNet tiny: one block a stage, the last at stride 32."""


def small(kind: str) -> nn.Module:
    """A tiny DETR, or one built like it: stride 32, width 32, two layers each, seven queries."""
    from transformers import AutoConfig, AutoModelForObjectDetection, ResNetConfig

    options: dict[str, Any] = {
        "backbone_config": ResNetConfig(**SMALL_BACKBONE),
        **{"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
        **{"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 7, "num_labels": 4},
    }
    return AutoModelForObjectDetection.from_config(AutoConfig.for_model(kind, **options))


DETR = Family(
    name="detr",
    library="transformers",
    kind="detr",
    names={"detr-resnet-50": "facebook/detr-resnet-50", "detr-resnet-101": "facebook/detr-resnet-101"},
    stage=stage,
    read=partial(read_with, "DetrImageProcessor"),
    small=partial(small, "detr"),
    configure={"detr-resnet-50": {"num_labels": 91}, "detr-resnet-101": {"num_labels": 91, "backbone": "resnet101"}},
    size=(480, 640),
)

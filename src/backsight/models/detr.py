"""Hugging Face's DETR: a convolutional backbone, a transformer encoder and decoder, one prediction for each query."""

from __future__ import annotations

from typing import Any

from torch import nn

from backsight.core import Detections, Site, Spec, Stage
from backsight.models.family import Family, Read


def stage(module: Any) -> Spec:
    """Backbone: the projected feature map. Prediction: logits (the last is "no object") and boxes of every query."""
    config = module.config
    encoder = {
        "depth": config.encoder_layers,
        "heads": config.encoder_attention_heads,
        "feedforward": config.encoder_ffn_dim,
    }
    decoder = {
        "depth": config.decoder_layers,
        "heads": config.decoder_attention_heads,
        "feedforward": config.decoder_ffn_dim,
    }
    return Spec(
        family="detr",
        task="detect",
        stages=(
            Stage("backbone", (Site("model.encoder", "input", "inputs_embeds"),), inverses={"": ("deconvolution", {})}),
            Stage(
                "encoder",
                (Site("model.encoder", field="last_hidden_state"),),
                _layers("model.encoder", config.encoder_layers),
                inverses={"": ("encoder", encoder)},
            ),
            Stage(
                "decoder",
                (Site("model.decoder", field="last_hidden_state"),),
                _layers("model.decoder", config.decoder_layers),
                inverses={"": ("decoder", decoder)},
                gridded=False,
            ),
            Stage(
                "prediction",
                (Site("", field="logits"), Site("", field="pred_boxes")),
                inverses={"": ("prediction", {}), "onehot": ("prediction", {"onehot": True})},
                gridded=False,
                classes=config.num_labels + 1,
            ),
        ),
    )


def _layers(path: str, count: int) -> tuple[Site, ...]:
    return tuple(Site(f"{path}.layers.{index}") for index in range(count))


def read_detections(module: Any) -> Read:
    """The likeliest class of every query that is not "no object", through the library's own post-processing."""
    from transformers import DetrImageProcessor

    processor, labels = DetrImageProcessor(), dict(module.config.id2label)

    def read(output: Any, size: tuple[int, int]) -> list[Detections]:
        sizes = [size] * len(output.logits)
        found = processor.post_process_object_detection(output, threshold=-1.0, target_sizes=sizes)
        return [Detections(each["boxes"], each["scores"], each["labels"], labels) for each in found]

    return read


_SMALL_BACKBONE: dict[str, Any] = {
    "hidden_sizes": [8, 16, 16, 24],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage4"],
}


def small() -> nn.Module:
    """A tiny DETR: stride 32, width 32, two layers each, seven queries."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    options: dict[str, Any] = {
        "backbone_config": ResNetConfig(embedding_size=8, **_SMALL_BACKBONE),
        **{"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
        **{"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 7, "num_labels": 4},
    }
    config = DetrConfig(**options)
    return DetrForObjectDetection(config)


DETR = Family(
    name="detr",
    library="transformers",
    kind="detr",
    names={"detr-resnet-50": "facebook/detr-resnet-50", "detr-resnet-101": "facebook/detr-resnet-101"},
    stage=stage,
    read=read_detections,
    small=small,
    configure={"detr-resnet-50": {"num_labels": 91}, "detr-resnet-101": {"num_labels": 91, "backbone": "resnet101"}},
    size=(480, 640),
)

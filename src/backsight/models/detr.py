"""Hugging Face's DETR: a convolutional backbone, a transformer encoder and decoder, one prediction for each query."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import nn

from backsight.core import Detections, Site, Spec, Stage
from backsight.models.family import Family, Read


def stage(module: Any) -> Spec:
    """Backbone: the projected feature map. Prediction: logits (the last is "no object") and boxes of every query."""
    return stages_before(module, prediction_stage(module.config.num_labels + 1))


def stages_before(module: Any, prediction: Stage) -> Spec:
    """The stages of DETR and of those built like it: backbone, encoder, decoder, and their ``prediction``."""
    config = module.config
    return Spec(
        family=config.model_type,
        task="detect",
        stages=(
            Stage("backbone", (Site("model.encoder", "input", "inputs_embeds"),), inverses={"": ("deconvolution", {})}),
            Stage(
                "encoder",
                (Site("model.encoder", field="last_hidden_state"),),
                layer_sites("model.encoder", config.encoder_layers),
                inverses={"": ("encoder", mirror(config, "encoder"))},
            ),
            Stage(
                "decoder",
                (Site("model.decoder", field="last_hidden_state"),),
                layer_sites("model.decoder", config.decoder_layers),
                inverses={"": ("decoder", mirror(config, "decoder"))},
                gridded=False,
            ),
            prediction,
        ),
    )


def mirror(config: Any, part: str, **more: int) -> dict[str, int]:
    """The sizes of the encoder or decoder (``part``), which its inverse repeats, and ``more``."""
    names = {"depth": "layers", "heads": "attention_heads", "feedforward": "ffn_dim"}
    return {ours: getattr(config, f"{part}_{theirs}") for ours, theirs in names.items()} | more


def prediction_stage(classes: int, scores: Literal["softmax", "sigmoid"] = "softmax") -> Stage:
    """The prediction of a detector of transformers: ``classes`` logits and a box (cx, cy, w, h) of every query."""
    return Stage(
        "prediction",
        (Site("", field="logits"), Site("", field="pred_boxes")),
        inverses={"": ("prediction", {}), "onehot": ("prediction", {"onehot": True})},
        gridded=False,
        classes=classes,
        scores=scores,
    )


def layer_sites(path: str, count: int) -> tuple[Site, ...]:
    """The output of every layer of the encoder or decoder at ``path``."""
    return tuple(Site(f"{path}.layers.{index}") for index in range(count))


def read_detections(module: Any) -> Read:
    """The likeliest class of every query that is not "no object", through the library's own post-processing."""
    from transformers import DetrImageProcessor

    return read_with(DetrImageProcessor(), module)


def read_with(processor: Any, module: Any) -> Read:
    """All that ``processor.post_process_object_detection`` makes of the output of ``module``, however faint."""
    labels = dict(module.config.id2label)

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


def small(kind: str) -> nn.Module:
    """A tiny DETR, or one built like it: stride 32, width 32, two layers each, seven queries."""
    from transformers import AutoConfig, AutoModelForObjectDetection, ResNetConfig

    options: dict[str, Any] = {
        "backbone_config": ResNetConfig(embedding_size=8, **_SMALL_BACKBONE),
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
    read=read_detections,
    small=partial(small, "detr"),
    configure={"detr-resnet-50": {"num_labels": 91}, "detr-resnet-101": {"num_labels": 91, "backbone": "resnet101"}},
    size=(480, 640),
)

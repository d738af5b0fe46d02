"""Hugging Face's RT-DETRv2, and what D-FINE has of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from backsight.models.detection import read_with
from backsight.models.family import Family, Read
from backsight.models.hybrid_encoder import check_size, stage


def read_detections(module: Any) -> Read:
    """As many of the best pairs of query and class as there are queries, through the library's own post-processing."""
    from transformers import RTDetrImageProcessor

    return read_with(RTDetrImageProcessor(), module)


SMALL: dict[str, Any] = {
    **{"d_model": 32, "encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3, "encoder_ffn_dim": 48},
    **{"encoder_in_channels": [16, 16, 24], "encoder_attention_heads": 2, "decoder_attention_heads": 2},
    **{"decoder_ffn_dim": 48, "decoder_layers": 2, "decoder_n_points": 2, "num_queries": 7, "num_labels": 4},
}
"""What makes RT-DETRv2 and D-FINE tiny: three maps of width 32, two decoder layers, seven queries."""


def small() -> nn.Module:
    """A tiny RT-DETRv2 on a tiny ResNet."""
    from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection

    widths: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}
    backbone = RTDetrResNetConfig(**widths, **{"layer_type": "basic", "out_indices": [2, 3, 4]})
    return RTDetrV2ForObjectDetection(RTDetrV2Config(backbone_config=backbone, **SMALL))


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

RT_DETR_V2 = Family(
    name="rt_detr_v2",
    library="transformers",
    kind="rt_detr_v2",
    names={f"rtdetr-v2-{depth}": f"PekingU/rtdetr_v2_{depth}vd" for depth in ("r18", "r50")},
    stage=stage,
    read=read_detections,
    small=small,
    configure={"rtdetr-v2-r18": _R18, "rtdetr-v2-r50": {"num_labels": 80}},
    size=(640, 640),
    preprocess=dict.fromkeys(("rtdetr-v2-r18", "rtdetr-v2-r50"), PREPROCESS),
    check_size=check_size,
)

"""Hugging Face's D-FINE: RT-DETR's stages, with boxes refined as distributions."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from backsight.models.detection import read_with
from backsight.models.family import Family
from backsight.models.rt_detr import PREPROCESS, SMALL, check_size, stage


def small() -> nn.Module:
    """A tiny D-FINE on a tiny HGNetV2, whose convolutions are drawn wide enough for an image to come through."""
    from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

    widths: dict[str, Any] = {
        **{"stem_channels": [3, 8, 8], "stage_in_channels": [8, 8, 16, 16], "stage_mid_channels": [8, 8, 8, 8]},
        **{"stage_out_channels": [8, 16, 16, 24], "hidden_sizes": [8, 16, 16, 24], "stage_num_blocks": [1, 1, 1, 1]},
        **{"stage_numb_of_layers": [1, 1, 1, 1], "out_indices": [2, 3, 4], "embedding_size": 8},
    }
    module = DFineForObjectDetection(DFineConfig(backbone_config=HGNetV2Config(**widths), depth_mult=0.34, **SMALL))
    for layer in module.model.backbone.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return module


_NARROW: dict[str, Any] = {
    **{"model_type": "hgnet_v2", "hidden_sizes": [128, 256, 512, 1024], "stem_channels": [3, 16, 16]},
    **{"stage_in_channels": [16, 64, 256, 512], "stage_mid_channels": [16, 32, 64, 128], "out_indices": [2, 3, 4]},
    **{"stage_out_channels": [64, 256, 512, 1024], "stage_num_blocks": [1, 1, 2, 1]},
    **{"stage_numb_of_layers": [3, 3, 3, 3], "use_learnable_affine_block": True},
}
_COCO: dict[str, Any] = {"num_labels": 80, "decoder_n_points": [3, 6, 3]}

D_FINE = Family(
    name="d_fine",
    library="transformers",
    kind="d_fine",
    names={f"dfine-{size}-coco": f"ustc-community/dfine-{size}-coco" for size in ("small", "large")},
    stage=stage,
    read=partial(read_with, "RTDetrImageProcessor"),
    small=small,
    configure={
        "dfine-small-coco": {
            **_COCO,
            **{"backbone_config": _NARROW, "encoder_in_channels": [256, 512, 1024], "decoder_layers": 3},
            **{"hidden_expansion": 0.5, "depth_mult": 0.34},
        },
        "dfine-large-coco": _COCO,
    },
    size=(640, 640),
    preprocess=dict.fromkeys(("dfine-small-coco", "dfine-large-coco"), PREPROCESS),
    check_size=check_size,
)

"""Hugging Face's RF-DETR: LW-DETR's stages on DINOv2, which has a class token in every window."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from backsight.core import Site, Spec
from backsight.models.detection import expect_multiples, expect_tokens, read_with
from backsight.models.family import Family
from backsight.models.lw_detr import SMALL, stages_from


def stage(module: Any) -> Spec:
    """As in LW-DETR, of the tokens on the grid: no projector reads the windows' class tokens."""
    layer = partial(Site, tokens=((1, None),), windows=module.config.backbone_config.num_windows)
    return stages_from(module, layer("model.backbone.backbone.embeddings"), layer)


def check_size(module: Any, size: tuple[int, int]) -> None:
    """Windows tile the image, which the library takes for a square; queries start at tokens."""
    config, vit = module.config, module.config.backbone_config
    expect_multiples("rf_detr", size, vit.patch_size * vit.num_windows, square=True)
    expect_tokens("rf_detr", size, [vit.patch_size], config.num_queries)


def small() -> nn.Module:
    """A tiny RF-DETR: three layers of width 24 in four windows."""
    from transformers import RfDetrConfig, RfDetrForObjectDetection
    from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

    sizes: dict[str, Any] = {"image_size": 56, "patch_size": 14, "hidden_size": 24, "num_hidden_layers": 3}
    windows: dict[str, Any] = {"num_windows": 2, "out_indices": [1, 3]}
    backbone = RfDetrDinov2Config(**sizes, **windows, num_attention_heads=2, mlp_ratio=2)
    return RfDetrForObjectDetection(RfDetrConfig(backbone_config=backbone, **SMALL))


def _configure(patch: int, windows: int, image: int, layers: list[int], depth: int) -> dict[str, Any]:
    backbone = {"model_type": "rf_detr_dinov2", "hidden_size": 384, "num_attention_heads": 6, "patch_size": patch}
    backbone |= {"num_windows": windows, "image_size": image, "out_indices": layers}
    return {"backbone_config": backbone, "num_labels": 91, "decoder_n_points": 2, "decoder_layers": depth}


def _square(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}}


RF_DETR = Family(
    name="rf_detr",
    library="transformers",
    kind="rf_detr",
    names={f"rf-detr-{size}": f"Roboflow/rf-detr-{size}" for size in ("nano", "base")},
    stage=stage,
    read=partial(read_with, "RfDetrImageProcessor"),
    small=small,
    configure={
        "rf-detr-nano": _configure(16, 2, 384, [3, 6, 9, 12], 2),
        "rf-detr-base": _configure(14, 4, 518, [2, 5, 8, 11], 3),
    },
    size=(560, 560),
    preprocess={"rf-detr-nano": _square(384), "rf-detr-base": _square(560)},
    check_size=check_size,
)

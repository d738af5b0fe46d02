"""timm's Eva: EVA, EVA-02, DINOv3, the Perception Encoder and ViTs with rotary positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from backsight.core import Spec
from backsight.models import vit
from backsight.models.family import Family


def stage(module: Any) -> Spec:
    """The places of timm's ViT; the rotary positions belong to the blocks, and no inverse sees them."""
    return replace(vit.stage(module), family="eva")


def small() -> nn.Module:
    """Three blocks of width 32 on 48 x 48 pixels: rotary positions, two registers, gated layers."""
    from timm.models.eva import Eva

    gated: dict[str, Any] = {"swiglu_mlp": True, "scale_mlp": True, "mlp_ratio": 4 * 2 / 3}
    rotary: dict[str, Any] = {"use_rot_pos_emb": True, "rope_type": "dinov3", "num_reg_tokens": 2}
    return Eva(img_size=48, patch_size=8, embed_dim=48, depth=3, num_heads=2, num_classes=5, **gated, **rotary)


EVA = Family(
    name="eva",
    library="timm",
    kind="Eva",
    names={
        "eva02_base_patch14_224": "timm/eva02_base_patch14_224.mim_in22k",
        "eva02_base_patch14_448": "timm/eva02_base_patch14_448.mim_in22k_ft_in22k_in1k",
        "vit_small_patch16_dinov3": "timm/vit_small_patch16_dinov3.lvd1689m",
        "vit_base_patch16_dinov3": "timm/vit_base_patch16_dinov3.lvd1689m",
    },
    stage=stage,
    read=vit.read_classes,
    small=small,
    constants=vit.constants,
)

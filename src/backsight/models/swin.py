"""timm's Swin Transformer: a pyramid of maps, channels last."""

from __future__ import annotations

from typing import Any

from torch import nn

from backsight.core import Site, Spec, Stage
from backsight.models.family import Family
from backsight.models.vit import read_classes


def stage(module: Any) -> Spec:
    """Backbone: the patch embedding. Then one stage for every resolution: ``stage1`` ... ``stage4``."""
    return Spec(
        family="swin",
        task="classify" if module.num_classes else "features",
        stages=(
            Stage("backbone", (Site("patch_embed", pattern="b h w d"),), inverses={"": ("patch", {})}),
            *(_stage(index, layer) for index, layer in enumerate(module.layers)),
        ),
    )


def _stage(index: int, layer: Any) -> Stage:
    block = layer.blocks[0]
    mirror = {"depth": len(layer.blocks), "heads": block.attn.num_heads, "window": block.window_size}
    sites = tuple(Site(f"layers.{index}.blocks.{number}", pattern="b h w d") for number in range(len(layer.blocks)))
    whole = (Site(f"layers.{index}", pattern="b h w d"),)
    return Stage(f"stage{index + 1}", whole, sites, inverses={"": ("swin", mirror)})


def small() -> nn.Module:
    """Two resolutions on 64 x 64 pixels."""
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=64, patch_size=4, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=5
    )


SWIN = Family(
    name="swin",
    library="timm",
    kind="SwinTransformer",
    names={"swin_base_patch4_window7_224": "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k"},
    stage=stage,
    read=read_classes,
    small=small,
)

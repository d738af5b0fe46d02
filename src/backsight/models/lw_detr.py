"""Hugging Face's LW-DETR, and what RF-DETR has of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from backsight.core import Site, Spec, Stage
from backsight.models.detection import deformable_stages, expect_multiples, expect_tokens, read_with
from backsight.models.family import Family


def stages_from(module: Any, start: Site, layer: Callable[[str], Site], scales: Sequence[float] = (1.0,)) -> Spec:
    """The stages of LW-DETR and RF-DETR: the ViT begins at ``start``, ``layer`` makes the site of a path in it, and the
    projector makes a map of each of ``scales`` times its grid. Layers after the last that the projector reads are left
    out.
    """
    config, vit = module.config, module.config.backbone_config
    depth = max(vit.out_indices)
    blocks = {"depth": depth, "heads": vit.num_attention_heads, "mlp_ratio": float(vit.mlp_ratio)}
    mirror = {"heads": config.decoder_self_attention_heads, "feedforward": config.decoder_ffn_dim}
    mirror |= {"depth": config.decoder_layers, "points": config.decoder_n_points}
    encoded = Site("model.backbone.projector", pattern="b d h w")
    layers = tuple(layer(f"model.backbone.backbone.encoder.layer.{index}") for index in range(depth))
    encoder: Mapping[str, Any] = {"": ("blocks", blocks) if [*scales] == [1.0] else ("deformable_encoder", mirror)}
    return deformable_stages(
        config,
        Stage("backbone", (start,), inverses={"": ("patch", {})}),
        Stage("encoder", (encoded,), layers, encoder),
        mirror,
        decoded=(Site("model.decoder", field="last_hidden_state"),),
    )


def stage(module: Any) -> Spec:
    """Backbone: the patches with their position. Encoder: the map, or maps, that the projector makes of several
    layers of the ViT. A layer's tokens lie in windows in the library, row by row here.
    """
    config = module.config
    start = Site("model.backbone.backbone.embeddings", pattern="b d h w")
    layer = partial(Site, windows=config.backbone_config.num_windows_side)
    return stages_from(module, start, layer, config.projector_scale_factors)


def check_size(module: Any, size: tuple[int, int]) -> None:
    """Windows tile the image; queries start at tokens."""
    config, vit = module.config, module.config.backbone_config
    expect_multiples("lw_detr", size, vit.patch_size * vit.num_windows_side)
    strides = [vit.patch_size / scale for scale in config.projector_scale_factors]
    expect_tokens("lw_detr", size, strides, config.num_queries)


SMALL: dict[str, Any] = {
    **{"d_model": 32, "decoder_ffn_dim": 48, "decoder_layers": 2, "decoder_self_attention_heads": 2},
    **{"decoder_cross_attention_heads": 4, "decoder_n_points": 2, "num_queries": 7, "group_detr": 2},
    **{"c2f_num_blocks": 1, "num_labels": 4},
}
"""What makes LW-DETR and RF-DETR tiny behind their backbone: width 32, two decoder layers, seven queries."""


def small(scales: tuple[float, ...] = (1.0,)) -> nn.Module:
    """A tiny LW-DETR: three layers of width 24 in four windows; a map for each of ``scales``."""
    from transformers import LwDetrConfig, LwDetrForObjectDetection, LwDetrViTConfig

    sizes: dict[str, Any] = {"image_size": 64, "pretrain_image_size": 64, "hidden_size": 24, "num_hidden_layers": 3}
    windows: dict[str, Any] = {"num_windows": 4, "window_block_indices": [0, 2], "out_indices": [1, 3]}
    backbone = LwDetrViTConfig(**sizes, **windows, num_attention_heads=2, mlp_ratio=2)
    return LwDetrForObjectDetection(LwDetrConfig(backbone_config=backbone, projector_scale_factors=scales, **SMALL))


_TINY: dict[str, Any] = {
    **{"model_type": "lw_detr_vit", "image_size": 1024, "hidden_size": 192, "num_hidden_layers": 6},
    **{"window_block_indices": [0, 2, 4], "out_indices": [1, 3, 5]},
}
_ONE_MAP: dict[str, Any] = {"num_labels": 91, "decoder_n_points": 2, "projector_scale_factors": [1.0]}

LW_DETR = Family(
    name="lw_detr",
    library="transformers",
    kind="lw_detr",
    names={f"lwdetr-{size}": f"AnnaZhang/lwdetr_{size}_60e_coco" for size in ("tiny", "small")},
    stage=stage,
    read=partial(read_with, "DeformableDetrImageProcessor"),
    small=small,
    configure={"lwdetr-tiny": {**_ONE_MAP, "backbone_config": _TINY, "num_queries": 100}, "lwdetr-small": _ONE_MAP},
    size=(640, 640),
    check_size=check_size,
)

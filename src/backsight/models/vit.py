"""timm's VisionTransformer: ViT, DeiT, DeiT 3, DINOv2 with registers, CLIP, SigLIP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from backsight.core import Classes, Site, Spec, Stage
from backsight.models.family import Family, Read


def stage(module: Any) -> Spec:
    """Backbone: the tokens after patch and position embedding. Encoder: after the last block, before the final norm."""
    blocks, last = [f"blocks.{index}" for index in range(len(module.blocks))], module.blocks[0].mlp.fc2
    mirror = {"heads": module.blocks[0].attn.num_heads, "mlp_ratio": last.in_features / last.out_features}
    return stages_of("vit", "norm_pre", blocks, mirror, module.num_prefix_tokens, classifies=module.num_classes > 0)


def stages_of(
    family: str, backbone: str, layers: Iterable[str], mirror: Mapping[str, float], prefix: int, *, classifies: bool
) -> Spec:
    """The stages of a plain ViT, ``backbone`` and encoder, whose inverse has as many layers, and the sizes in
    ``mirror``."""
    sites = tuple(map(Site, layers))
    blocks = {"depth": len(sites), **mirror}
    return Spec(
        family,
        "classify" if classifies else "features",
        (
            Stage("backbone", (Site(backbone),), inverses={"": ("patch", {})}, prefix=prefix),
            Stage("encoder", sites[-1:], sites, inverses={"": ("blocks", blocks)}, prefix=prefix),
        ),
    )


def read_classes(module: nn.Module) -> Read:
    """Logits ``B C`` as :class:`Classes`, with the label names of the configuration where it has any."""
    names = (getattr(module, "pretrained_cfg", None) or {}).get("label_names") or ()
    labels = dict(enumerate(names))
    return lambda logits, _: Classes(logits, labels)


def constants(module: Any) -> dict[str, Tensor]:
    """What the analytic inverse needs of the patch embedding.

    ``projection`` ``D 3 p p``, its ``bias`` ``D``, the ``position`` embedding of the patches ``h*w D`` (or zeros).
    Nothing where a norm stands between these and the first block, as in CLIP: features are not linear in the image.
    """
    if not isinstance(module.norm_pre, nn.Identity) or module.patch_embed.proj.in_channels != 3:
        return {}
    projection, patches = module.patch_embed.proj, module.patch_embed.num_patches
    zeros = projection.weight.new_zeros
    bias = zeros(projection.out_channels) if projection.bias is None else projection.bias
    position = (
        zeros(1, patches, projection.out_channels) if module.pos_embed is None else module.pos_embed[:, -patches:]
    )
    return {"projection": projection.weight.detach(), "bias": bias.detach(), "position": position[0].detach()}


def small() -> nn.Module:
    """Three blocks of width 32 on 48 x 48 pixels."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=48, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5)


VIT = Family(
    name="vit",
    library="timm",
    kind="VisionTransformer",
    names={
        "vit_base_patch16_224": "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
        "deit_base_patch16_224": "timm/deit_base_patch16_224.fb_in1k",
        "deit3_base_patch16_224": "timm/deit3_base_patch16_224.fb_in1k",
        "vit_base_patch14_reg4_dinov2": "timm/vit_base_patch14_reg4_dinov2.lvd142m",
        "vit_base_patch16_clip_224": "timm/vit_base_patch16_clip_224.openai",
        "vit_base_patch16_siglip_224": "timm/vit_base_patch16_siglip_224.webli",
    },
    stage=stage,
    read=read_classes,
    small=small,
    constants=constants,
)

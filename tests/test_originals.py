"""Checkpoints of the authors of Deformable DETR, RT-DETR, DINO and DINOv2, made up from models of transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from backsight.core import UserError
from backsight.models import MODELS, load_model
from marks import quick

COMMON = ((r"\.mlp\.fc", ".linear"), (r"\.encoder_attn\.", ".cross_attn."), (r"_attn\.o_proj", "_attn.out_proj"))
ENCODER = ((r"(encoder.*)self_attn_layer_norm", r"\1norm1"), (r"(encoder.*)final_layer_norm", r"\1norm2"))
DECODER = (("self_attn_layer_norm", "norm1"), ("encoder_attn_layer_norm", "norm2"), ("final_layer_norm", "norm3"))
HEADS = ((r"decoder\.class_embed", "decoder.dec_score_head"), (r"decoder\.bbox_embed", "decoder.dec_bbox_head"))
RT_DETR = (
    (r"^model\.", ""),
    *((rf"backbone\.model\.embedder\.embedder\.{i}", f"backbone.conv1.conv1_{i + 1}") for i in range(3)),
    (r"backbone\.model\.encoder\.stages\.(\d+)\.layers", r"backbone.res_layers.\1.blocks"),
    (r"shortcut\.1\.", "short.conv."),
    *((rf"(blocks\.\d+)\.layer\.{i}", rf"\1.branch2{'abc'[i]}") for i in range(3)),
    *(("shortcut", "short"), ("convolution", "conv"), ("normalization", "norm"), ("aifi", "encoder")),
    (r"^decoder\.layers", "decoder.decoder.layers"),
    (r"^(enc_|denoising_)", r"decoder.\1"),
    (r"^(encoder|decoder)_input_proj", r"\1.input_proj"),
    (r"^(decoder\.input_proj\.\d+)\.0", r"\1.conv"),
    (r"^(decoder\.input_proj\.\d+)\.1", r"\1.norm"),
    *(*HEADS, *ENCODER, *DECODER, *COMMON),
)
BLOCKS = (
    (r"^(layers|encoder\.layer)\.", "blocks."),
    (r"embeddings\.(\w+token\w*)", r"\1"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    *((r"\.attention\.o_proj", ".attn.proj"), (r"\.attention\.", ".attn.")),
    *(("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("^layernorm", "norm")),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
)
DEFORMABLE = (
    (r"^model\.backbone\.model", "backbone.0.body"),
    (r"^model\.query_position_embeddings", "query_embed"),
    (r"^model\.input_proj", "input_proj"),
    (r"^model\.", "transformer."),
    *(*ENCODER, ("self_attn_layer_norm", "norm2"), ("encoder_attn_layer_norm", "norm1"), *DECODER[2:], *COMMON),
)
"""From transformers' names to the authors', the other way round than the scripts of conversion state them."""

PUBLISHED: dict[str, tuple[tuple[tuple[str, str], ...], str, tuple[str, ...]]] = {
    "deformable_detr": (
        DEFORMABLE,
        "in_proj_",
        (
            *("backbone.0.body.layer1.0.conv1.weight", "input_proj.3.1.bias", "query_embed.weight"),
            *("transformer.level_embed", "transformer.reference_points.weight", "bbox_embed.0.layers.2.bias"),
            *("transformer.encoder.layers.0.self_attn.value_proj.weight", "transformer.decoder.layers.1.norm3.weight"),
            *("transformer.decoder.layers.0.self_attn.in_proj_weight", "transformer.decoder.layers.0.linear1.weight"),
            "transformer.decoder.layers.0.cross_attn.sampling_offsets.bias",
        ),
    ),
    "rt_detr": (
        RT_DETR,
        "in_proj_",
        (
            *("backbone.conv1.conv1_3.norm.running_var", "backbone.res_layers.1.blocks.0.short.conv.conv.weight"),
            *("backbone.res_layers.3.blocks.0.branch2b.norm.bias", "encoder.input_proj.0.1.running_mean"),
            *("encoder.encoder.0.layers.0.self_attn.in_proj_bias", "encoder.encoder.0.layers.0.norm2.weight"),
            *("encoder.fpn_blocks.1.bottlenecks.2.conv1.conv.weight", "encoder.pan_blocks.0.conv2.norm.weight"),
            *("decoder.input_proj.2.conv.weight", "decoder.input_proj.2.norm.bias", "decoder.enc_output.1.weight"),
            *("decoder.decoder.layers.1.cross_attn.output_proj.weight", "decoder.decoder.layers.1.norm3.bias"),
            *("decoder.dec_score_head.1.weight", "decoder.dec_bbox_head.0.layers.2.bias"),
            *("decoder.denoising_class_embed.weight", "decoder.query_pos_head.layers.0.weight"),
        ),
    ),
    "vit-transformers": (
        BLOCKS,
        "qkv.",
        (
            *("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.2.norm1.bias", "blocks.0.attn.qkv.weight"),
            *("blocks.0.attn.proj.bias", "blocks.1.mlp.fc2.weight", "norm.weight"),
        ),
    ),
    "dinov2_with_registers": (
        BLOCKS,
        "qkv.",
        ("mask_token", "register_tokens", "pos_embed", "blocks.0.ls1.gamma", "blocks.2.mlp.fc1.bias", "norm.bias"),
    ),
}
"""How names of a family are turned round, what begins the last word of a stacked query, key and value, and some names
that the published files have."""


def as_published(module: nn.Module, name: str) -> dict[str, Tensor]:
    patterns, stacked, known = PUBLISHED[name]
    state: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor]] = {}
    for own, value in module.state_dict().items():
        for pattern, replacement in patterns:
            own = re.sub(pattern, replacement, own)
        before, letter, after = re.split(r"([qkv])_proj\.", own) if re.search(r"[qkv]_proj\.", own) else (own, "", "")
        if letter:
            parts.setdefault(f"{before}{stacked}{after}", [torch.empty(0)] * 3)["qkv".index(letter)] = value
        else:
            state[own] = value
    state |= {own: torch.cat(three) for own, three in parts.items()}
    assert set(known) <= state.keys()
    return state


def small(name: str) -> Any:
    if name != "deformable_detr":
        module: Any = MODELS[name].small()
        return getattr(module, "dinov2_with_registers", getattr(module, "vit", module))
    from transformers import DeformableDetrForObjectDetection, TimmBackboneConfig

    config: Any = MODELS[name].small().config  # pyright: ignore[reportAttributeAccessIssue]
    config.backbone_config = TimmBackboneConfig(
        backbone="resnet18", out_indices=[2, 3, 4], use_pretrained_backbone=False
    )
    return DeformableDetrForObjectDetection(config)


@pytest.mark.parametrize("name", quick(PUBLISHED, "vit-transformers", "dinov2_with_registers"))
def test_a_checkpoint_of_a_model_s_authors_fills_every_tensor(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = small(name)
    for value in module.state_dict().values():
        value += torch.rand_like(value) if value.is_floating_point() else 0
    state, given = as_published(module, name), str(tmp_path / "original.pth")
    if name == "rt_detr":  # which keeps averages alone, and what it computes for one size of images
        state |= {"decoder.anchors": torch.zeros(1, 5, 4), "decoder.valid_mask": torch.ones(1, 5, 1)}
        torch.save({"ema": {"module": state, "updates": 3}}, given)
        given += ":ema"
    else:
        torch.save({"model": state} if name == "deformable_detr" else state, given)
    small(name).save_pretrained(tmp_path / "model")
    loaded = load_model(str(tmp_path / "model"), weights=given).module.state_dict()
    assert loaded.keys() == module.state_dict().keys()
    for own, value in module.state_dict().items():
        assert torch.equal(loaded[own], value), own


def test_timm_reads_the_files_of_dino_and_dinov2(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, depth=2)
    own = module.state_dict()
    # Its authors have a position for the class token, which timm adds to that.
    position = torch.cat([torch.zeros(1, 1, 384), own["pos_embed"]], 1)
    others = {"register_tokens": own["reg_token"], "pos_embed": position, "mask_token": torch.zeros(1, 384)}
    state = {name: value for name, value in own.items() if name != "reg_token"} | others
    torch.save(state, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    save_for_hf(module, str(tmp_path / "model"), model_args={"img_size": 56, "depth": 2})
    dino = timm.create_model("test_vit", num_classes=0)
    teacher = {f"backbone.{name}": value for name, value in dino.state_dict().items()} | {"head.mlp.0.bias": position}
    student = {f"module.{name}": value + 1 for name, value in teacher.items()}
    torch.save({"student": student, "teacher": teacher, "epoch": 3}, tmp_path / "full_checkpoint.pth")
    for name, file, expected in (
        (str(tmp_path / "model"), "dinov2_vits14_reg4_pretrain.pth", module),
        ("test_vit", "full_checkpoint.pth:teacher", dino),
    ):
        loaded = load_model(name, weights=f"{tmp_path}/{file}").module.state_dict()
        assert loaded.keys() == expected.state_dict().keys()
        assert all(torch.equal(loaded[each], value) for each, value in expected.state_dict().items())


@pytest.mark.parametrize(
    ("name", "names", "reader"),
    [
        ("test_vit", ["class_token", "conv_proj.weight"], "torchvision .* bs.stage"),
        ("swin_tiny_patch4_window7_224", ["features.1.0.attn.qkv.weight"], "torchvision .* bs.stage"),
        ("detr-resnet-50", ["neck.convs.0.conv.weight", "bbox_head.fc_cls.weight"], "mmdetection .* spec"),
        ("conditional-detr-resnet-50", ["backbone.0.body.conv1.weight"], r"transformers' repository"),
    ],
)
def test_names_of_another_library_are_told_with_what_reads_them(
    name: str, names: list[str], reader: str, tmp_path: Path
) -> None:
    torch.save(dict.fromkeys(names, torch.zeros(2)), tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"are of another model: .*{reader}"):
        load_model(name, weights=tmp_path / "other.pth")

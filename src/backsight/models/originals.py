"""Checkpoints of the authors of DETR, Deformable DETR, RT-DETR, DINO and DINOv2: their names of tensors -> those of
transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from backsight.core import UserError

Patterns = tuple[tuple[str, str], ...]
"""Patterns of names and what takes their place, applied one after the other."""


@dataclass(frozen=True)
class Original:
    """What the authors of a model call its tensors: ``marker`` is a pattern of names that they alone have, ``dropped``
    of tensors that transformers computes itself."""

    marker: str
    renamed: Patterns
    dropped: str = "$^"


BODY = r"^backbone\.0\.body\."
"""What begins the name of every tensor of DETR's convolutional backbone."""

_LAYERS: Patterns = (
    (r"(layers\.\d+\.)linear", r"\1mlp.fc"),
    (r"(encoder\S*\.layers\.\d+\.)norm1\.", r"\1self_attn_layer_norm."),
    (r"(encoder\S*\.layers\.\d+\.)norm2\.", r"\1final_layer_norm."),
    (r"(decoder\.layers\.\d+\.)norm3\.", r"\1final_layer_norm."),
    (r"\.(multihead|cross)_attn\.", ".encoder_attn."),
    (r"(_attn\.)out_proj\.", r"\1o_proj."),
)
_SELF_FIRST: Patterns = (
    (r"(decoder\.layers\.\d+\.)norm1\.", r"\1self_attn_layer_norm."),
    (r"(decoder\.layers\.\d+\.)norm2\.", r"\1encoder_attn_layer_norm."),
)
_CROSS_FIRST: Patterns = (
    (r"(decoder\.layers\.\d+\.)norm1\.", r"\1encoder_attn_layer_norm."),
    (r"(decoder\.layers\.\d+\.)norm2\.", r"\1self_attn_layer_norm."),
)
_LIKE_DETR: Patterns = (
    (BODY, "model.backbone.model."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^transformer\.", "model."),
)
_DETR = Original(
    BODY,
    (
        *_LIKE_DETR,
        (r"^input_proj\.", "model.input_projection."),
        (r"^class_embed\.", "class_labels_classifier."),
        (r"^bbox_embed\.", "bbox_predictor."),
        (r"^model\.decoder\.norm\.", "model.decoder.layernorm."),
        *(*_LAYERS, *_SELF_FIRST),
    ),
)
_DEFORMABLE_DETR = Original(BODY, (*_LIKE_DETR, (r"^input_proj\.", "model.input_proj."), *_LAYERS, *_CROSS_FIRST))

_RT_DETR = Original(
    r"^backbone\.res_layers\.",
    (
        (r"^backbone\.conv1\.conv1_1\.", "model.backbone.model.embedder.embedder.0."),
        (r"^backbone\.conv1\.conv1_2\.", "model.backbone.model.embedder.embedder.1."),
        (r"^backbone\.conv1\.conv1_3\.", "model.backbone.model.embedder.embedder.2."),
        (r"^backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.", r"model.backbone.model.encoder.stages.\1.layers.\2."),
        (r"\.short\.conv\.(conv|norm)\.", r".shortcut.1.\1."),
        (r"\.short\.", ".shortcut."),
        (r"\.branch2a\.", ".layer.0."),
        (r"\.branch2b\.", ".layer.1."),
        (r"\.branch2c\.", ".layer.2."),
        (r"^(model\.backbone\..*\.)conv\.", r"\1convolution."),
        (r"^(model\.backbone\..*\.)norm\.", r"\1normalization."),
        (r"^(en|de)coder\.input_proj\.", r"model.\1coder_input_proj."),
        (r"(coder_input_proj\.\d+\.)conv\.", r"\g<1>0."),
        (r"(coder_input_proj\.\d+\.)norm\.", r"\g<1>1."),
        (r"^encoder\.encoder\.", "model.encoder.aifi."),
        (r"^encoder\.", "model.encoder."),
        (r"^decoder\.(enc_|denoising_)", r"model.\1"),
        (r"^decoder\.(decoder\.)?", "model.decoder."),
        (r"\.dec_score_head\.", ".class_embed."),
        (r"\.dec_bbox_head\.", ".bbox_embed."),
        (r"\.num_points_scale$", ".n_points_scale"),
        *(*_LAYERS, *_SELF_FIRST),
    ),
    dropped=r"^decoder\.(anchors|valid_mask)$",
)

_TOKENS: Patterns = (
    (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"\.attn\.qkv\.", ".attention.in_proj_"),
    (r"\.attn\.proj\.", ".attention.o_proj."),
)
_DINO = Original(
    r"^blocks\.\d+\.attn\.qkv\.",
    (
        *_TOKENS,
        (r"^blocks\.", "layers."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
    ),
)
_DINOV2 = Original(
    _DINO.marker,
    (
        *_TOKENS,
        (r"^blocks\.", "encoder.layer."),
        (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
        (r"\.mlp\.w12\.", ".mlp.weights_in."),
        (r"\.mlp\.w3\.", ".mlp.weights_out."),
    ),
)

ORIGINALS: dict[str, Original] = {
    **{"detr": _DETR, "deformable_detr": _DEFORMABLE_DETR, "rt_detr": _RT_DETR, "rt_detr_v2": _RT_DETR},
    **{"vit": _DINO, "dinov2": _DINOV2, "dinov2_with_registers": _DINOV2},
}
"""By the ``model_type`` of transformers."""


def from_original(state: Mapping[str, Tensor], kind: str, file: Path) -> Mapping[str, Tensor]:
    """The tensors of an original checkpoint of a model of type ``kind`` under transformers' names, query, key and value
    apart; any other ``state`` as it is.

    A name that the table does not know stays as it is, for the loader to refuse.

    Raises:
        UserError: ``file`` is the variant with a dilated last block, which has the same tensors and is another network.
    """
    original = ORIGINALS.get(kind)
    if original is None or not any(re.search(original.marker, name) for name in state):
        return state
    if original.marker == BODY and "dc5" in file.name.lower():
        raise UserError(
            f"{file.name} has a dilated last block (DC5), and this model's is not dilated: "
            "take the checkpoint without it, as detr-r50-e632da11.pth or detr-r101-2c7b67e5.pth"
        )
    renamed = {}
    for name, value in state.items():
        if re.search(original.dropped, name):
            continue
        for pattern, replacement in original.renamed:
            name = re.sub(pattern, replacement, name)
        prefix, stacked, part = name.rpartition("in_proj_")
        if stacked:
            parts = zip("qkv", value.chunk(3), strict=False)
            renamed |= {f"{prefix}{letter}_proj.{part}": each.clone() for letter, each in parts}
        else:
            renamed[name] = value
    return renamed

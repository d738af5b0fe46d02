"""Checkpoints of DETR's own authors (``detr-r50-e632da11.pth``): their names of tensors -> those of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from backsight.core import UserError

BODY = "backbone.0.body."
"""What begins the name of every tensor of the convolutional backbone in the original."""

RENAMED = (
    (r"^backbone\.0\.body\.", "model.backbone.model."),
    (r"^input_proj\.", "model.input_projection."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    (r"^transformer\.", "model."),
    (r"^model\.decoder\.norm\.", "model.decoder.layernorm."),
    (r"^(model\.(?:en|de)coder\.layers\.\d+\.)linear", r"\1mlp.fc"),
    (r"^(model\.(?:en|de)coder\.layers\.\d+\.)norm1\.", r"\1self_attn_layer_norm."),
    (r"^(model\.encoder\.layers\.\d+\.)norm2\.", r"\1final_layer_norm."),
    (r"^(model\.decoder\.layers\.\d+\.)norm2\.", r"\1encoder_attn_layer_norm."),
    (r"^(model\.decoder\.layers\.\d+\.)norm3\.", r"\1final_layer_norm."),
    (r"^(model\.decoder\.layers\.\d+\.)multihead_attn\.", r"\1encoder_attn."),
    (r"(_attn\.)out_proj\.", r"\1o_proj."),
)
"""Patterns of names and what takes their place, applied one after the other."""


def is_original(state: Mapping[str, Tensor]) -> bool:
    """Whether the names of ``state`` are those of DETR's own authors."""
    return any(name.startswith(BODY) for name in state)


def from_original(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors of an original checkpoint under transformers' names, ``in_proj`` divided into query, key and value.

    A name that the table does not know stays as it is, for the loader to refuse.

    Raises:
        UserError: ``file`` is the variant with a dilated last block, which has the same tensors and is another network.
    """
    if "dc5" in file.name.lower():
        raise UserError(
            f"{file.name} is DETR with a dilated last block (DC5), and this model's is not dilated: "
            "take detr-r50-e632da11.pth or detr-r101-2c7b67e5.pth"
        )
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        prefix, stacked, kind = name.rpartition("in_proj_")
        if stacked:
            parts = zip("qkv", value.chunk(3), strict=False)
            renamed |= {f"{prefix}{part}_proj.{kind}": each.clone() for part, each in parts}
        else:
            renamed[name] = value
    return renamed

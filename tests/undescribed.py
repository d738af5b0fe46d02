"""Small models of transformers of types that no family describes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    **{"image_size": 48, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64},
    **{"num_hidden_layers": 3, "num_attention_heads": 2},
}
TEXT: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1},
}
TWO: dict[str, Any] = {"vision_config": SIZES, "text_config": TEXT, "projection_dim": 32}
MAPS: dict[str, Any] = {"hidden_sizes": [8, 16, 20, 24], "depths": [1, 2, 2, 1]}
WINDOWS: dict[str, Any] = {"image_size": 64, "embed_dim": 24, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
ANY_PATCHES: dict[str, Any] = {"num_patches": 36, **{key: SIZES[key] for key in SIZES if key != "image_size"}}
DEPTH: dict[str, Any] = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}
SEGFORMER: dict[str, Any] = {
    **{"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1], "num_attention_heads": [1, 2, 2, 2]},
    **{"decoder_hidden_size": 16},
}
SAM: dict[str, Any] = {
    **{**SIZES, "image_size": 64, "output_channels": 16, "global_attn_indexes": [1], "window_size": 4},
    **{"num_pos_feats": 8, "mlp_dim": 48},
}
SAM_WHOLE: dict[str, Any] = {
    "vision_config": SAM,
    "prompt_encoder_config": {
        **{"hidden_size": 16, "image_size": 64, "patch_size": 8, "image_embedding_size": 8, "mask_input_channels": 4}
    },
    "mask_decoder_config": {
        **{"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "num_hidden_layers": 1},
        "iou_head_hidden_dim": 16,
    },
}
SAM2: dict[str, Any] = {
    "backbone_config": {
        **{"model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64]},
        **{"blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64]},
        **{"num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 4, 4, 4]},
        **{"global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4]},
    },
    **{"backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "fpn_hidden_size": 16,
}
DINO: dict[str, Any] = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "num_queries": 7},
    **{"decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_text_len": 8},
    "backbone_config": {
        **{"model_type": "swin", **WINDOWS, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
        "out_indices": [2, 3, 4],
    },
    "text_config": {"model_type": "bert", **TEXT},
}


@dataclass(frozen=True)
class Undescribed:
    """A class of transformers, its configuration, its task, its first and last stage; ``size`` (None: its own)."""

    kind: str
    name: str
    options: dict[str, Any]
    stages: tuple[str, ...] = ("backbone", "encoder")
    task: str = "features"
    size: tuple[int, int] | None = None

    def save(self, folder: Path) -> Path:
        """Save a random one as its library does."""
        import transformers

        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(self.kind, **self.options)
        getattr(transformers, self.name)(config).save_pretrained(folder)
        return folder


def classifier(kind: str, name: str, options: dict[str, Any], *stages: str, **more: Any) -> Undescribed:
    return Undescribed(
        kind,
        f"{name}ForImageClassification",
        {**options, "num_labels": 4},
        stages or ("backbone", "encoder"),
        "classify",
        **more,
    )


MANY: dict[str, Any] = {"size": (64, 64)}

UNDESCRIBED: dict[str, Undescribed] = {
    "deit": classifier("deit", "DeiT", SIZES),
    "deit distilled": Undescribed(
        "deit", "DeiTForImageClassificationWithTeacher", {**SIZES, "num_labels": 4}, task="classify"
    ),
    "beit": classifier("beit", "Beit", SIZES),
    "data2vec": classifier("data2vec-vision", "Data2VecVision", SIZES),
    "msn": classifier("vit_msn", "ViTMSN", SIZES),
    "ijepa": classifier("ijepa", "IJepa", SIZES),
    "vit_mae": Undescribed("vit_mae", "ViTMAEForPreTraining", {**SIZES, "decoder_hidden_size": 16}),
    "swin": classifier("swin", "Swin", WINDOWS),
    "swinv2": classifier("swinv2", "Swinv2", WINDOWS),
    "resnet": classifier(
        "resnet", "ResNet", {**MAPS, "embedding_size": 8, "layer_type": "basic"}, "backbone", "encoder4", **MANY
    ),
    "convnext": classifier("convnext", "ConvNext", MAPS, "backbone", "encoder4", **MANY),
    "convnextv2": classifier("convnextv2", "ConvNextV2", MAPS, "backbone", "encoder4", **MANY),
    "regnet": classifier(
        "regnet",
        "RegNet",
        {**MAPS, "embedding_size": 8, "hidden_sizes": [8, 16, 16, 24], "groups_width": 8},
        "backbone",
        "encoder4",
        **MANY,
    ),
    "dinov3": Undescribed("dinov3_vit", "DINOv3ViTModel", {**SIZES, "num_register_tokens": 2}),
    "dinov3 convnext": Undescribed("dinov3_convnext", "DINOv3ConvNextModel", MAPS, ("stage1", "stage4"), **MANY),
    "clip": Undescribed("clip", "CLIPModel", TWO),
    "clip vision": Undescribed("clip_vision_model", "CLIPVisionModel", SIZES),
    "clip embedding": Undescribed("clip_vision_model", "CLIPVisionModelWithProjection", SIZES),
    "clip classifier": classifier("clip", "CLIP", TWO),
    "siglip": Undescribed("siglip", "SiglipModel", TWO),
    "siglip vision": Undescribed("siglip_vision_model", "SiglipVisionModel", SIZES),
    "siglip classifier": classifier("siglip", "Siglip", TWO),
    "siglip2": Undescribed(
        "siglip2", "Siglip2Model", {"vision_config": ANY_PATCHES, "text_config": TEXT}, size=(48, 64)
    ),
    "siglip2 vision": Undescribed("siglip2_vision_model", "Siglip2VisionModel", ANY_PATCHES, size=(48, 64)),
    "segformer": Undescribed("segformer", "SegformerForSemanticSegmentation", SEGFORMER, ("stage1", "stage4"), **MANY),
    "segformer classifier": classifier("segformer", "Segformer", SEGFORMER, "stage1", "stage4", **MANY),
    "dpt": Undescribed(
        "dpt", "DPTForDepthEstimation", {**SIZES, **DEPTH, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]}
    ),
    "depth anything": Undescribed(
        "depth_anything",
        "DepthAnythingForDepthEstimation",
        {
            **{**DEPTH, "head_hidden_size": 8, "reassemble_hidden_size": 32, "patch_size": 8},
            "backbone_config": {
                **{"model_type": "dinov2", **SIZES, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
                "reshape_hidden_states": False,
            },
        },
        size=(48, 48),
    ),
    "owlv2": Undescribed("owlv2", "Owlv2ForObjectDetection", TWO, task="detect"),
    "owlvit": Undescribed("owlvit", "OwlViTForObjectDetection", TWO, task="detect"),
    "sam": Undescribed("sam", "SamModel", SAM_WHOLE, ("backbone", "stage")),
    "sam vision": Undescribed("sam_vision_model", "SamVisionModel", SAM, ("backbone", "stage")),
    "sam2 vision": Undescribed("sam2_vision_model", "Sam2VisionModel", SAM2, ("backbone", "stage5"), **MANY),
}

PROPOSED: dict[str, Undescribed] = {
    "grounding dino": Undescribed(
        "grounding-dino", "GroundingDinoForObjectDetection", DINO, ("backbone", "encoder3"), "detect", (128, 96)
    ),
    **{name: UNDESCRIBED[name] for name in ("clip", "vit_mae", "swinv2", "owlv2", "sam2 vision")},
}
"""Those for which a proposal is tried."""

"""The zoo's detectors: the libraries' own classes at a small size, and what it takes to train them from nothing.

DETR arrives with a frozen backbone and with batch normalisation frozen at identity, made for pretrained weights. Here
it is trained with the ordinary one, whose weights and statistics are put back into the frozen one for shipping.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
)

from backsight.core import Pixels
from backsight.data.base import Batch
from backsight.io import write_json
from backsight.shipped import ZOO
from backsight.tasks import as_label
from recipes.recipe import SIZE, Recipe

PIXELS = Pixels(SIZE)
"""How the zoo's detectors see a picture: 96 x 96, ImageNet's statistics."""

_STATISTICS = ("weight", "bias", "running_mean", "running_var")
_BACKBONE: dict[str, Any] = {
    "layer_type": "basic",
    "embedding_size": 24,
    "hidden_sizes": [48, 96, 160],
    "depths": [1, 1, 1],
}
_DETR: dict[str, Any] = {
    "d_model": 128,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "dropout": 0.0,
    "num_queries": 10,
    "eos_coefficient": 0.25,
}
_DEFORMABLE: dict[str, Any] = {
    "d_model": 128,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_n_points": 2,
    "decoder_n_points": 2,
    "dropout": 0.0,
    "num_queries": 20,
    "num_feature_levels": 2,
    "auxiliary_loss": True,  # here it changes the loss alone, and is taken out of the shipped configuration
}


class DetectorLearner:
    """A small detector and its loss."""

    def __init__(self, recipe: Recipe, device: torch.device | None = None) -> None:
        self.recipe = recipe
        self.model = build_detector(recipe).to(device)

    def parameters(self) -> list[nn.Parameter]:
        """What is to be trained: all of it."""
        return list(self.model.parameters())

    def loss(self, batch: Batch) -> Tensor:
        """The library's own detection loss, after every layer of the decoder."""
        images = PIXELS.normalise(batch.images).contiguous(memory_format=torch.channels_last)
        labels = [as_label(target, self.recipe.size) for target in batch.targets]
        labels = [{name: value.to(images.device) for name, value in each.items()} for each in labels]
        if self.recipe.architecture != "detr":
            return self.model(images, labels=labels).loss
        return _loss_of_every_layer(self.model, images, labels)

    def save(self, folder: Path) -> None:
        """Write ``config.json``, ``model.safetensors`` (half precision) and ``preprocessor_config.json``."""
        shipped = freeze_batch_norm(copy.deepcopy(self.model)).to(torch.float16, memory_format=torch.contiguous_format)
        shipped.config.auxiliary_loss = False
        shipped.save_pretrained(folder, save_original_format=False)
        # The file is half precision, the model is not: whoever loads it computes in single precision.
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        write_json(folder / "config.json", {**config, "dtype": "float32"})
        write_json(folder / "preprocessor_config.json", _preprocessor(self.recipe.size))


def build_detector(recipe: Recipe) -> Any:
    """An untrained detector, all of it trainable, in training mode; the random state decides its weights."""
    stages = ["stage3"] if recipe.architecture == "detr" else ["stage2", "stage3"]
    backbone = ResNetConfig(**{**_BACKBONE, "out_features": stages})
    labels = recipe.classes
    names: dict[str, Any] = {"id2label": labels, "label2id": {name: label for label, name in labels.items()}}
    if recipe.architecture == "detr":
        model = DetrForObjectDetection(DetrConfig(backbone_config=backbone, **{**_DETR, **recipe.arguments}, **names))
        _initialise_detr(model)
        if recipe.start:
            _begin_with(model, DetrForObjectDetection.from_pretrained(ZOO / recipe.start))
    else:
        model = DeformableDetrForObjectDetection(DeformableDetrConfig(backbone_config=backbone, **_DEFORMABLE, **names))
    learning: Any = thaw_batch_norm(model).requires_grad_(True)
    return learning.to(memory_format=torch.channels_last).train()


def thaw_batch_norm(model: nn.Module) -> nn.Module:
    """Replace every frozen batch normalisation in ``model`` by one that learns, with the same numbers."""
    return _replace(model, "FrozenBatchNorm2d", lambda norm: nn.BatchNorm2d(len(norm.weight)))


def freeze_batch_norm(model: nn.Module) -> Any:
    """The inverse of :func:`thaw_batch_norm`: the frozen class of the model's own family."""
    from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrFrozenBatchNorm2d
    from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d

    frozen = DetrFrozenBatchNorm2d if isinstance(model, DetrForObjectDetection) else DeformableDetrFrozenBatchNorm2d
    return _replace(model, "BatchNorm2d", lambda norm: frozen(len(norm.weight)))


def _replace(model: nn.Module, ending: str, make: Any) -> nn.Module:
    for path, module in list(model.named_modules()):
        if type(module).__name__.endswith(ending):
            other = make(module)
            with torch.no_grad():
                for name in _STATISTICS:
                    getattr(other, name).copy_(getattr(module, name))
            model.set_submodule(path, other)
    return model


def _initialise_detr(model: DetrForObjectDetection) -> None:
    # The library's default is made for loading weights; this is how the original DETR starts.
    for part in (model.model.encoder, model.model.decoder, model.model.input_projection):
        for weights in part.parameters():
            if weights.dim() > 1:
                nn.init.xavier_uniform_(weights)
    nn.init.normal_(model.model.query_position_embeddings.weight)


def _begin_with(model: nn.Module, other: nn.Module) -> None:
    # What does not fit (other classes, other queries) stays as it is.
    own, its = model.state_dict(), other.state_dict()
    model.load_state_dict(
        {name: its[name] for name in own if name in its and its[name].shape == own[name].shape}, False
    )


def _loss_of_every_layer(model: DetrForObjectDetection, images: Tensor, labels: list[dict[str, Tensor]]) -> Tensor:
    # The library's own switch for auxiliary losses also feeds each layer's normed output to the next, which no trained
    # DETR expects: so the layers are listened to instead.
    states: list[Tensor] = []
    decoder = model.model.decoder
    hooks = [layer.register_forward_hook(lambda _, __, out: states.append(_first(out))) for layer in decoder.layers]
    try:
        model.model(images)
    finally:
        for hook in hooks:
            hook.remove()
    normed = decoder.layernorm(torch.stack(states))
    logits, boxes = model.class_labels_classifier(normed), model.bbox_predictor(normed).sigmoid()
    config = copy.copy(model.config)
    config.auxiliary_loss = True
    return model.loss_function(logits[-1], labels, images.device, boxes[-1], config, logits, boxes)[0]


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _preprocessor(size: tuple[int, int]) -> dict[str, Any]:
    return {
        "image_processor_type": "DetrImageProcessor",
        "do_resize": True,
        "size": {"height": size[0], "width": size[1]},
        "do_normalize": True,
        "image_mean": list(PIXELS.mean),
        "image_std": list(PIXELS.std),
        "do_pad": False,
    }

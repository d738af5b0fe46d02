"""The zoo's classifiers: timm's own vision transformer at a small size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from backsight.core import Pixels
from backsight.data.base import Batch
from backsight.io import write_json, write_whole
from recipes.recipe import SIZE, Recipe

_HALF = (0.5, 0.5, 0.5)

PIXELS = Pixels(SIZE, mean=_HALF, std=_HALF, interpolation="bicubic")
"""How the zoo's classifiers see a picture: 96 x 96, from [0, 1] to [-1, 1]."""

_ARCHITECTURE = "vit_tiny_patch16_224"  # timm's entry point; the arguments make it smaller still
_ARGUMENTS: dict[str, Any] = {"img_size": SIZE[0], "patch_size": 12, "embed_dim": 128, "depth": 6, "num_heads": 4}


class ClassifierLearner:
    """A small vision transformer and its loss."""

    def __init__(self, recipe: Recipe, device: torch.device | None = None) -> None:
        self.recipe = recipe
        self.arguments = {**_ARGUMENTS, **recipe.arguments}
        model: Any = timm.create_model(_ARCHITECTURE, num_classes=len(recipe.classes), **self.arguments)
        self.model = model.to(device).train()
        # Trained beside the model where the recipe asks for it, and not shipped: the class of every patch, or none.
        self.patch_head = nn.Linear(model.embed_dim, len(recipe.classes) + 1).to(device)

    def parameters(self) -> list[nn.Parameter]:
        """What is to be trained."""
        return [*self.model.parameters(), *(self.patch_head.parameters() if self.recipe.dense else [])]

    def loss(self, batch: Batch) -> Tensor:
        """Cross entropy against the class of the image, and, weighted by ``dense``, that of every patch."""
        images, share = batch.images, 0.0
        labels = torch.tensor([target.label for target in batch.targets]).to(images.device)
        if torch.rand(()) < self.recipe.mixed:
            images, share = _mix(images)
        tokens = self.model.forward_features(PIXELS.normalise(images))
        answers = self.model.forward_head(tokens)
        loss = functional.cross_entropy(answers, labels)
        if share:
            loss = (1 - share) * loss + share * functional.cross_entropy(answers, labels.flip(0))
        if not self.recipe.dense:
            return loss
        patches = self.patch_head(tokens[:, self.model.num_prefix_tokens :])
        classes = _classes_of_patches(batch, len(self.recipe.classes), self.model.patch_embed.grid_size)
        return loss + self.recipe.dense * functional.cross_entropy(patches.flatten(0, 1), classes.flatten(0, 1))

    def save(self, folder: Path) -> None:
        """Write ``config.json`` in the format of timm's hub, and ``model.safetensors`` (half precision)."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.half().contiguous() for name, tensor in self.model.state_dict().items()}
        write_whole(folder / "model.safetensors", lambda path: save_file(state, path, metadata={"format": "pt"}))
        names = self.recipe.classes
        pretrained = {
            "input_size": [3, *self.recipe.size],
            "mean": list(PIXELS.mean),
            "std": list(PIXELS.std),
            "interpolation": PIXELS.interpolation,
            "crop_pct": 1.0,
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        config = {
            "architecture": _ARCHITECTURE,
            "num_classes": len(names),
            "num_features": self.arguments["embed_dim"],
            "model_args": self.arguments,
            "label_names": list(names.values()),
            "pretrained_cfg": pretrained,
        }
        write_json(folder / "config.json", config)


def _mix(images: Tensor) -> tuple[Tensor, float]:
    """``images`` with a rectangle of the last one in the first, and so on, and the part of it that this covers."""
    height, width = images.shape[-2:]
    y0, y1 = sorted(torch.randint(0, height + 1, (2,)).tolist())
    x0, x1 = sorted(torch.randint(0, width + 1, (2,)).tolist())
    mixed = images.clone()
    mixed[..., y0:y1, x0:x1] = images.flip(0)[..., y0:y1, x0:x1]
    return mixed, (y1 - y0) * (x1 - x0) / (height * width)


def _classes_of_patches(batch: Batch, num_classes: int, grid: tuple[int, int]) -> Tensor:
    """How much of every patch each class covers, and in the last column nothing: ``B h*w C+1``, rows sum to 1."""
    covered = torch.zeros(len(batch.targets), num_classes, *grid)
    for image, target in enumerate(batch.targets):
        if target.masks is not None and len(target.masks):
            covered[image, target.labels] = functional.adaptive_avg_pool2d(target.masks.float(), grid)
    return torch.cat([covered, 1 - covered.sum(1, keepdim=True)], 1).flatten(2).mT

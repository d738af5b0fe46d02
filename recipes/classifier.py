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
from backsight.data.world.scenes import NUM_CLASSES, class_names
from backsight.io import write_json, write_whole
from recipes.recipe import SIZE, Recipe

_HALF = (0.5, 0.5, 0.5)

PIXELS = Pixels(SIZE, mean=_HALF, std=_HALF, interpolation="bicubic")
"""How the zoo's classifiers see a picture: 96 x 96, from [0, 1] to [-1, 1]."""

_ARCHITECTURE = "vit_tiny_patch16_224"  # timm's entry point; the arguments make it smaller still
_ARGUMENTS: dict[str, Any] = {"img_size": SIZE[0], "patch_size": 12, "embed_dim": 128, "depth": 6, "num_heads": 4}


class ClassifierLearner:
    """A small vision transformer and its loss."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        model: Any = timm.create_model(_ARCHITECTURE, num_classes=NUM_CLASSES, **_ARGUMENTS)
        self.model = model.train()
        # Trained beside the model where the recipe asks for it, and not shipped: the class of every patch, or none.
        self.patch_head = nn.Linear(model.embed_dim, NUM_CLASSES + 1)

    def parameters(self) -> list[nn.Parameter]:
        """What is to be trained."""
        return [*self.model.parameters(), *(self.patch_head.parameters() if self.recipe.dense else [])]

    def loss(self, batch: Batch) -> Tensor:
        """Cross entropy against the class of the one object, and, weighted by ``dense``, that of every patch."""
        labels = torch.tensor([target.label for target in batch.targets])
        tokens = self.model.forward_features(PIXELS.normalise(batch.images))
        loss = functional.cross_entropy(self.model.forward_head(tokens), labels)
        if not self.recipe.dense:
            return loss
        patches = self.patch_head(tokens[:, self.model.num_prefix_tokens :])
        classes = _classes_of_patches(batch, self.model.patch_embed.grid_size)
        return loss + self.recipe.dense * functional.cross_entropy(patches.flatten(0, 1), classes.flatten(0, 1))

    def save(self, folder: Path) -> None:
        """Write ``config.json`` in the format of timm's hub, and ``model.safetensors`` (half precision)."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.half().contiguous() for name, tensor in self.model.state_dict().items()}
        write_whole(folder / "model.safetensors", lambda path: save_file(state, path, metadata={"format": "pt"}))
        names = class_names(self.recipe.law)
        pretrained = {
            "input_size": [3, *SIZE],
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
            "num_classes": NUM_CLASSES,
            "num_features": _ARGUMENTS["embed_dim"],
            "model_args": _ARGUMENTS,
            "label_names": [names[label] for label in range(NUM_CLASSES)],
            "pretrained_cfg": pretrained,
        }
        write_json(folder / "config.json", config)


def _classes_of_patches(batch: Batch, grid: tuple[int, int]) -> Tensor:
    """How much of every patch each class covers, and in the last column nothing: ``B h*w C+1``, rows sum to 1."""
    covered = torch.zeros(len(batch.targets), NUM_CLASSES, *grid)
    for image, target in enumerate(batch.targets):
        if target.masks is not None and len(target.masks):
            covered[image, target.labels] = functional.adaptive_avg_pool2d(target.masks.float(), grid)
    return torch.cat([covered, 1 - covered.sum(1, keepdim=True)], 1).flatten(2).mT

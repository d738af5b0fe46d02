"""Photographs for the zoo's models to learn from: every time at another place, scale and brightness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import to_pil_image

from backsight.core import Pixels
from backsight.data import ImageData, open_data
from backsight.data.base import Batch, Sample, Target
from recipes.recipe import Recipe

VISIBLE = 0.35
"""The part of an object's box that has to lie in the picture for the object to count."""


class Photos:
    """All training photographs of a recipe on one device, and the validation and test ones of the same data.

    Args:
        recipe: one that has ``photos``.
        pixels: what the model expects of an image.
        device: of the batches.
        data: where the photographs are, as for ``backsight train``; the recipe's own place if not given.
    """

    def __init__(self, recipe: Recipe, pixels: Pixels, device: torch.device, data: str | None = None) -> None:
        splits = open_data(data or recipe.photos, replace(pixels, size=recipe.size))
        self.recipe = recipe
        self.device = device
        self.validation: ImageData = splits.validation
        self.test: ImageData = splits.test
        samples = [sample for index in range(len(splits.train)) if (sample := splits.train[index]) is not None]
        self.images = torch.stack([sample.image for sample in samples]).to(device)
        self.samples: list[Sample] = samples
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.order: list[int] = []

    def batch(self, _: int) -> Batch:
        """The next photographs in a shuffled order, moved and lit otherwise."""
        batch = self.moved()
        return replace(batch, images=self._lit(batch.images))

    def moved(self) -> Batch:
        """The same, in their own light."""
        count = self.recipe.batch_size
        while len(self.order) < count:
            self.order += torch.randperm(len(self.samples), generator=self.generator).tolist()
        chosen, self.order = self.order[:count], self.order[count:]
        moves = self._moves(count)
        images = self.images[chosen].float() / 255
        matrices = torch.zeros(count, 2, 3)
        matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, :, 2] = moves[:, 0], moves[:, 1], moves[:, 2:]
        grid = functional.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
        images = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        targets = [self._target(self.samples[index].target, move) for index, move in zip(chosen, moves, strict=True)]
        return Batch(images, tuple(self.samples[index].id for index in chosen), tuple(targets))

    def write(self, folder: Path, count: int) -> str:
        """Write ``count`` moved photographs into ``folder``; gives the data as ``open_data`` reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        for step in range(-(-count // self.recipe.batch_size)):
            for index, image in enumerate((255 * self.moved().images).byte().cpu()):
                to_pil_image(image).save(folder / f"{step:05}-{index:03}.jpg", quality=95)
        return f"folder:{folder}"

    def _moves(self, count: int) -> Tensor:
        """For every image the part of its width and height that is seen, negative if mirrored, and the middle of it,
        in units in which the image reaches from -1 to 1: ``count 4``."""
        chance = torch.rand(count, 4, generator=self.generator)
        middle = 2 * torch.rand(count, 2, generator=self.generator) - 1
        mirrored = (chance[:, 1:3] < 0.5).float()
        if self.recipe.architecture == "vit":  # never upside down, and a little beyond the edge
            part, middle, mirrored[:, 1] = 0.8 + 0.4 * chance[:, :1], 0.25 * middle, 0
        else:
            part = 0.6 + 0.4 * chance[:, :1]
            middle = (1 - part) * middle
        return torch.cat([part * (1 - 2 * mirrored), middle], 1)

    def _lit(self, images: Tensor) -> Tensor:
        """Brighter or darker, with more or less contrast and colour."""
        chance = 0.7 + 0.6 * torch.rand(3, len(images), 1, 1, 1, generator=self.generator).to(images)
        grey = images.mean(1, keepdim=True)
        images = grey + chance[0] * (images - grey)
        middle = images.mean((1, 2, 3), keepdim=True)
        return (chance[2] * (middle + chance[1] * (images - middle))).clamp(0, 1)

    def _target(self, target: Target, move: Tensor) -> Target:
        if not len(target.boxes):
            return target
        height, width = self.images.shape[-2:]
        sides = torch.tensor([width, height])
        corners = (target.boxes.view(-1, 2, 2) / sides * 2 - 1 - move[2:]) / move[:2]
        moved = ((corners + 1) / 2 * sides).sort(1).values
        seen = torch.minimum(moved.clamp(min=0), sides.float())
        area, whole = ((each[:, 1] - each[:, 0]).prod(1) for each in (seen, moved))
        kept = area > VISIBLE * whole
        return Target(seen[kept].flatten(1), target.labels[kept], crowd=target.crowd[kept])

"""Pictures and what is known of them, brought to the size of a model, in uint8 as the model libraries do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backsight.core import Pixels
from backsight.data.base import Target


@dataclass(frozen=True)
class Placement:
    """Where a picture comes to lie: scaled to ``scaled`` (rows, columns), then the window of ``size`` whose upper left
    corner is at ``corner`` (row, column). The window is the image, or, if that is padded, the upper left part of it."""

    scaled: tuple[int, int]
    size: tuple[int, int]

    @property
    def corner(self) -> tuple[int, int]:
        """Rows of the scaled picture above the window, and columns left of it."""
        return round((self.scaled[0] - self.size[0]) / 2), round((self.scaled[1] - self.size[1]) / 2)

    def window(self, scaled: Tensor) -> Tensor:
        """``... scaled`` -> ``... H W``."""
        top, left = self.corner
        return scaled[..., top : top + self.size[0], left : left + self.size[1]]


def place(original: tuple[int, int], pixels: Pixels) -> Placement:
    """Where a picture of ``original`` (rows, columns) comes to lie.

    The rounding is timm's (``transforms_imagenet_eval``: crop modes "squash" for "stretch" and "center" for
    "crop"), which for a whole "stretch" is the DETR processor's too; that of "pad" is the DETR processor's.
    """
    height, width = original
    if pixels.fit == "pad":
        ratio = min(pixels.size[0] / height, pixels.size[1] / width)
        whole = (max(1, int(height * ratio)), max(1, int(width * ratio)))
        return Placement(whole, whole)
    goal = tuple(math.floor(side / pixels.crop_fraction) for side in pixels.size)
    if pixels.fit == "stretch":
        scaled = goal
    elif goal[0] == goal[1]:
        scaled = (
            (goal[0], int(goal[0] * width / height)) if height <= width else (int(goal[0] * height / width), goal[0])
        )
    else:
        ratio = min(height / goal[0], width / goal[1])
        scaled = (round(height / ratio), round(width / ratio))
    return Placement((scaled[0], scaled[1]), pixels.size)


def fit(image: Tensor, pixels: Pixels) -> Tensor:
    """A picture ``3 rows columns`` uint8 -> ``3 H W`` uint8 at the model's size, with antialiasing.

    Padding has the mean colour of the model's pixels, which is nearest to 0 in its normalised space.
    """
    placement = place((image.shape[-2], image.shape[-1]), pixels)
    window = placement.window(_resize(image, placement.scaled, pixels.interpolation))
    return _padded(window, pixels) if pixels.fit == "pad" else window.contiguous()


def _resize(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """``... rows columns`` uint8 -> the same at ``size``."""
    # Half of the time that the package takes to load: drawn pictures come at their size and need none of it.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    if interpolation == "lanczos":  # for tensors only the newest torchvision has it
        picture = functional.resize(functional.to_pil_image(image), list(size), InterpolationMode.LANCZOS)
        return functional.pil_to_tensor(picture)
    if interpolation == "nearest":  # as Pillow does it
        return functional.resize(image, list(size), InterpolationMode.NEAREST_EXACT)
    return functional.resize(image, list(size), InterpolationMode(interpolation), antialias=True)


def _padded(picture: Tensor, pixels: Pixels) -> Tensor:
    colour = (255 * torch.tensor(pixels.mean)).round().clamp(0, 255).to(torch.uint8)
    image = colour[:, None, None].repeat(1, *pixels.size)
    image[:, : picture.shape[-2], : picture.shape[-1]] = picture
    return image


def valid_pixels(original: tuple[int, int], pixels: Pixels) -> Tensor | None:
    """Where a fitted picture of ``original`` (rows, columns) is, ``H W`` bool; None if it fills the image."""
    rows, columns = place(original, pixels).size
    if (rows, columns) == pixels.size:
        return None
    valid = torch.zeros(pixels.size, dtype=torch.bool)
    valid[:rows, :columns] = True
    return valid


def fit_target(target: Target, original: tuple[int, int], pixels: Pixels) -> Target:
    """What is known of a picture of ``original`` (rows, columns), in the pixels of the fitted one.

    Boxes are cut at the window's border; objects of which nothing is left in it are dropped from every field.
    """
    placement = place(original, pixels)
    scale = torch.tensor([placement.scaled[1] / original[1], placement.scaled[0] / original[0]]).repeat(2)
    corner = torch.tensor(placement.corner[::-1]).repeat(2)
    border = torch.tensor(placement.size[::-1]).repeat(2)
    boxes = (target.boxes * scale - corner).clamp(min=0).minimum(border)
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    kept = {name: values[keep] for name, values in (target.tensors() | {"boxes": boxes}).items()}
    if "masks" in kept:
        kept["masks"] = _fit_masks(kept["masks"], placement, pixels.size)
    return Target.of(kept, target.label)


def _fit_masks(masks: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
    """Masks ``n rows columns`` bool -> ``n H W`` bool."""
    if not len(masks):
        return torch.zeros(0, *size, dtype=torch.bool)
    window = placement.window(_resize(masks.to(torch.uint8), placement.scaled, "nearest")).bool()
    below, right = size[0] - window.shape[-2], size[1] - window.shape[-1]
    return torch.nn.functional.pad(window, (0, right, 0, below))

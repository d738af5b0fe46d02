"""What models are given beside images, or in their place, and do to these first: for ours, images are enough."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from backsight.core import Pixels, UserError
from backsight.models.detection import expect_multiples

Module = TypeVar("Module", bound=nn.Module)


def settled(module: Module) -> Module:
    """The module itself, which now masks no tokens (ViT-MAE), and cuts images into patches itself (SigLIP 2)."""
    config: Any = getattr(module, "config", None)
    kind = getattr(config, "model_type", "")
    if kind == "vit_mae":  # it would leave out three quarters of the tokens
        config.mask_ratio = 0.0
    if kind.startswith("siglip2"):
        patch = getattr(config, "vision_config", config).patch_size
        module.register_forward_pre_hook(lambda _, args, kwargs: _in_patches(args, kwargs, patch), with_kwargs=True)
    return module


def _in_patches(args: tuple[Any, ...], kwargs: dict[str, Any], patch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call with images ``B C H W`` -> one with their patches ``B N p*p*C``, all of them valid."""
    images = kwargs.get("pixel_values", args[0] if args else None)
    if not isinstance(images, Tensor) or images.dim() != 4:  # the library's own input
        return args, kwargs
    h, w = images.shape[2] // patch, images.shape[3] // patch
    patches = rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)
    mask = torch.ones(patches.shape[:2], dtype=torch.long, device=images.device)
    shapes = torch.tensor([[h, w]], device=images.device).expand(len(images), 2)
    return (), {**kwargs, "pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def pixels_of_detector(module: Any, size: tuple[int, int] | None) -> Pixels | None:
    """What a detector of torchvision takes, which normalises images itself; from now on it resizes them no more, but
    takes those of ``size`` as they are. None for any other module.

    Raises:
        UserError: it would pad images of ``size``.
    """
    first: Any = getattr(module, "transform", None)
    if type(first).__name__ != "GeneralizedRCNNTransform":
        return None
    width, height = size[::-1] if size else first.fixed_size or 2 * (first.min_size[-1],)
    expect_multiples(type(module).__name__, (height, width), first.size_divisible)
    first.fixed_size = (width, height)
    return Pixels((height, width), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def expect_tiled(name: str, size: tuple[int, int], patch: Sequence[int]) -> None:
    """Refuse images (H, W) that patches do not tile (``UserError``): a library leaves out the rest, or fails late."""
    if any(side % by for side, by in zip(size, patch, strict=True)):
        raise UserError(
            f"{name} cannot take images of {size[0]}x{size[1]} pixels: its patches are {patch[0]}x{patch[1]}, "
            "give multiples of these"
        )


def more_arguments(module: Any, size: tuple[int, int]) -> dict[str, Any]:
    """What a forward over images of ``size`` (H, W) needs beside these, to give the same every time: an empty text
    where one is read too; tokens in their own order for ViT-MAE."""
    config: Any = getattr(module, "config", None)
    if getattr(config, "model_type", "") == "vit_mae":
        return {"noise": torch.arange(size[0] // config.patch_size * (size[1] // config.patch_size))[None]}
    text = getattr(config, "text_config", None)
    if text is None or "input_ids" not in inspect.signature(type(module).forward).parameters:
        return {}
    ends = [getattr(text, f"{end}_token_id", None) or 0 for end in ("bos", "eos")]
    return {"input_ids": torch.tensor([ends]).clamp(max=text.vocab_size - 1)}  # SigLIP's default is beyond its words

"""Small forward models for the tests: one of every family, and what is needed to make a toy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from backsight.core import Pixels, Site, Spec, Stage
from backsight.engine import RANDOM, StagedModel
from backsight.models import MODELS, Family, stage_module
from backsight.models import timm as timm_models
from backsight.verification import scramble, tensors

SEED = 0

SMALL_TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("test_vit", {}),
    "eva": ("eva02_tiny_patch14_336", {"embed_dim": 48, "depth": 2, "num_heads": 2}),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4]}),
}
"""An architecture that timm has registered, and what makes it small."""

SQUARE = ("rf_detr",)
"""Families that take square images alone."""


def build_small(name: str, seed: int = SEED, size: tuple[int, int] | None = None) -> StagedModel:
    """A small model of the family ``name``; weights and statistics are scrambled, so that no zero hides anything."""
    family = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = family.small()
    scramble(module, torch.Generator().manual_seed(seed))
    return stage_module(module, family, small_pixels(family, module, size), name=f"small {name}", weights=RANDOM)


def small_pixels(family: Family, module: nn.Module, size: tuple[int, int] | None = None) -> Pixels:
    """The pixels of a small module: its own size where it has one, 64 x 96 where it takes any."""
    if family.library == "timm":
        return timm_models.pixels(module, size)
    config: Any = module.config
    if family.name in SQUARE:
        return Pixels(size or (84, 84))
    own = getattr(config, "image_size", None) or (64, 96)
    height, width = (own, own) if isinstance(own, int) else own
    return Pixels(size or (height, width))


def random_images(model: StagedModel, batch: int = 2, seed: int = SEED) -> Tensor:
    """``B 3 H W`` in [0, 1], at the model's size."""
    return torch.rand(batch, 3, *model.pixels.size, generator=torch.Generator().manual_seed(seed))


def noisy(features: Tensor, seed: int = SEED) -> Tensor:
    """Features that differ everywhere from ``features``, by as much as these vary."""
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(seed))
    return features.detach() + features.detach().std() * noise


def stage_toy(
    module: nn.Module, sites: Mapping[str, Site], size: tuple[int, int] = (8, 8), **stage_options: Any
) -> StagedModel:
    """Stage a module of the tests' own, with one stage for each of ``sites``."""
    stages = tuple(Stage(name, (site,), **stage_options) for name, site in sites.items())
    return StagedModel(module, Spec("toy", "features", stages), Pixels(size), name="toy")


def save_transformers(name: str, folder: Path) -> nn.Module:
    """A small model of transformers, saved as its library does."""
    torch.manual_seed(SEED)
    module: Any = MODELS[name].small()
    module.save_pretrained(folder)
    return module


def save_timm(name: str, folder: Path) -> nn.Module:
    """A small model of timm, saved as the hub has it."""
    torch.manual_seed(SEED)
    architecture, options = SMALL_TIMM[name]
    module = timm.create_model(architecture, **options)
    save_for_hf(module, str(folder), model_args=options, safe_serialization=True)
    return module


def same_answers(one: StagedModel, other: StagedModel) -> bool:
    """The same pixels, the same weights, and bit for bit the same output and features."""
    images = random_images(one)
    a, b = one.run(images), other.run(images)
    assert one.pixels == other.pixels
    assert one.digest() == other.digest()
    assert all(map(torch.equal, tensors(a.output), tensors(b.output)))
    return all(torch.equal(a[name], b[name]) for name in one.names)

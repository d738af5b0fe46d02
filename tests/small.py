"""Small forward models for the tests: one of every family, and what is needed to make a toy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backsight.core import Pixels, Site, Spec, Stage
from backsight.models import MODELS, Family, from_timm, stage_module
from backsight.staging import RANDOM, StagedModel
from backsight.verify import scramble

SEED = 0


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
        return from_timm.pixels(module, size)
    config: Any = module.config
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

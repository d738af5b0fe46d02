"""Small forward models for the tests: one of every family, and what is needed to make a toy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from torch import Tensor, nn

import backsight as bs
from backsight.core import Pixels, Site, Spec, Stage
from backsight.engine import RANDOM, StagedModel
from backsight.models import MODELS, Family, stage_module
from backsight.models import timm as timm_models
from backsight.verification import measure_statistics, scramble, tensors
from numerics import assert_rounding, assert_same_weights

SEED = 0

SMALL_TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("test_vit", {}),
    "eva": ("eva02_tiny_patch14_336", {"embed_dim": 48, "depth": 2, "num_heads": 2}),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4]}),
}
"""An architecture that timm has registered, and what makes it small."""

SQUARE = ("rf_detr",)
"""Families that take square images alone."""

PICKING = ("rt_detr", "rt_detr_v2", "d_fine")
"""Families whose deep features fade to nothing in a small model, and which pick their queries by them.

With the statistics that BatchNorm is made with, which queries have the best scores would depend on the CPU."""


def build_small(name: str, seed: int = SEED, size: tuple[int, int] | None = None) -> StagedModel:
    """A small model of the family ``name``; weights and statistics are scrambled, so that no zero hides anything."""
    family = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = scrambled(family, seed)
    return stage_module(module, family, small_pixels(family, module, size), name=f"small {name}", weights=RANDOM)


def scrambled(family: Family, seed: int) -> nn.Module:
    module = family.small()
    scramble(module, torch.Generator().manual_seed(seed))
    if family.name in PICKING:
        images = torch.rand(2, 3, *small_pixels(family, module).size)
        measure_statistics(module.eval(), lambda: module(images))
    return module


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
    module: Any = scrambled(MODELS[name], SEED)
    module.save_pretrained(folder)
    return module


def save_timm(name: str, folder: Path) -> nn.Module:
    """A small model of timm, saved as the hub has it."""
    torch.manual_seed(SEED)
    architecture, options = SMALL_TIMM[name]
    module = timm.create_model(architecture, **options)
    save_for_hf(module, str(folder), model_args=options, safe_serialization=True)
    return module


SHORT_RUN: dict[str, Any] = {
    **{"data": "world:prior:single", "steps": 2, "seeds": 1, "batch_size": 2, "max_validation": 2, "max_test": 2},
    **{"workers": 0, "tracker": "none", "device": "cpu", "precision": "fp32"},
}


def train_and_reconstruct(model: StagedModel, folder: Path, given: StagedModel | None = None) -> str:
    """A few steps in ``folder/run``, then ``folder/photo.jpg`` by all stages (``given``: as the model) -> the card."""
    bs.train(model, out=folder / "run", **SHORT_RUN)
    Image.new("RGB", (80, 60), (200, 30, 30)).save(folder / "photo.jpg")
    result = bs.reconstruct(folder / "run", [folder / "photo.jpg"], folder / "seen", model=given, device="cpu")
    assert {each.labels["stage"] for each in result.pictures} >= set(model.stages)
    return (folder / "run" / "card.md").read_text()


def assert_same_answers(one: StagedModel, other: StagedModel) -> None:
    """The same pixels, bit for bit the same weights, and the same output and features but for rounding.

    Deformable attention in random weights makes rounding larger than other layers do: a batch of one and one of two
    differ by 1.2e-5 of the largest feature.
    """
    assert one.pixels == other.pixels
    assert one.digest() == other.digest()
    assert one.names == other.names
    assert_same_weights(one.module, other.module)
    images = random_images(one)
    a, b = one.run(images), other.run(images)
    assert_rounding(tensors(a.output), tensors(b.output), 1e-4)
    assert_rounding(dict(a), dict(b), 1e-4)

"""A forward model whose tokens are the patches of the image themselves: its inverses have known answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from backsight.core import Pixels, Site, Spec, Stage
from backsight.engine import StagedModel, Trace

PATCH = 8


class Patches(nn.Module):
    """``B 3 H W`` -> ``B 3pp h w``, then through an encoder that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 3 * PATCH**2, PATCH, PATCH)
        nn.init.zeros_(self.cut.bias)
        with torch.no_grad():
            self.cut.weight.copy_(torch.eye(3 * PATCH**2).unflatten(1, (3, PATCH, PATCH)))
        self.encoder = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(self.cut(images))


def pixel_model(size: tuple[int, int] = (96, 96)) -> StagedModel:
    """Two stages, ``backbone`` and ``encoder``, with the same features."""
    sites = {"backbone": Site("cut", pattern="b d h w"), "encoder": Site("encoder", pattern="b d h w")}
    stages = tuple(Stage(name, (site,)) for name, site in sites.items())
    pixels = Pixels(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return StagedModel(Patches(), Spec("toy", "features", stages), pixels, name="patches")


def paint_patches(model: StagedModel) -> Callable[[Any], Tensor]:
    """The perfect inverse, which is strictly local: every patch from its own token."""
    h = model.pixels.size[0] // PATCH

    def paint(source: Trace | Tensor) -> Tensor:
        features = source["encoder"] if isinstance(source, Trace) else source
        return rearrange(features, "b (h w) (c p q) -> b c (h p) (w q)", h=h, c=3, p=PATCH)

    return paint


def paint_mean(model: StagedModel) -> Callable[[Any], Tensor]:
    """Every patch as the mean of all tokens: what happens to one is seen everywhere alike."""
    patches = paint_patches(model)

    def paint(source: Trace | Tensor) -> Tensor:
        features = source["encoder"] if isinstance(source, Trace) else source
        return patches(features.mean(1, keepdim=True).expand_as(features))

    return paint

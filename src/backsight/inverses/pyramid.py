"""The inverse from a pyramid of maps to the image: from the coarsest level to the finest, then on to pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

from einops import rearrange
from torch import Tensor, nn

from backsight.core import Layout
from backsight.inverses.base import Inverse, times_finer
from backsight.inverses.convolutional import prime_factors
from backsight.validation import Positive

Grid = tuple[int, int]


class Pyramid(Inverse):
    """The backbone inverse of detectors with several resolutions: the paper's transposed convolutions, level by level.

    The coarsest map is widened by a 1x1 layer, mixed by a 3x3 one and brought to the next level's grid by transposed
    convolutions; there that level's own map, widened alike, is added, and so on to the finest level, and on to the
    image. Every layer has BatchNorm and ReLU; the last gives RGB through a sigmoid. Up to stride 16 there are as many
    channels as in DETR's backbone inverse, ``4 D`` at stride 16 and half of them at half the stride; no more beyond.

    Args:
        level: read this level of the pyramid alone, 0 the finest; None reads them all.
        expansion: channels at stride 16 and beyond, in units of D.
    """

    learning_rate: ClassVar[float] = 3e-3

    def __init__(
        self,
        source: Layout,
        target: Layout,
        constants: Mapping[str, Tensor] | None = None,
        *,
        level: int | None = None,
        expansion: Positive = 4.0,
    ) -> None:
        super().__init__(source, target, constants)
        if target.width != 3:
            raise ValueError(f"{type(self).__name__} reconstructs images, not {target}")
        count = len(source.grids)
        if not 0 <= (level or 0) < count:
            raise ValueError(f"there is no level {level or 0}: {source} has {count}, the finest is 0")
        self.widest = expansion * source.width
        self.levels = list(range(count))[::-1] if level is None else [level]
        self.grids = [*(source.grids[each] for each in self.levels), target.grid]
        self.enter = nn.ModuleList(self._enter(grid) for grid in self.grids[:-1])
        self.leave = nn.ModuleList(self._leave(*pair) for pair in pairwise(self.grids))
        self.paint = nn.Sequential(nn.ConvTranspose2d(self.channels(target.grid), 3, 3, padding=1), nn.Sigmoid())

    def channels(self, grid: Grid, factor: int = 1) -> int:
        """The channels on ``grid``, or on one with steps ``factor`` times as long."""
        return max(1, round(self.widest * min(1, factor * times_finer(self.target.grid, grid) / 16)))

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B 3 H W`` in [0, 1]."""
        image: Tensor | float = 0.0
        for level, enter, leave, (h, w) in zip(
            self.maps(features), self.enter, self.leave, self.grids[1:], strict=True
        ):
            image = leave(enter(level) + image)[..., :h, :w]
        return self.paint(image)

    def maps(self, features: Tensor) -> list[Tensor]:
        """``B N D`` -> the levels that are read, ``B D h w`` each, the coarsest first."""
        grids = self.source.grids
        parts = features[:, self.source.prefix :].split([h * w for h, w in grids], 1)
        return [rearrange(parts[each], "b (h w) d -> b d h w", h=grids[each][0]) for each in self.levels]

    def _enter(self, grid: Grid) -> nn.Module:
        width = self.channels(grid)
        return nn.Sequential(nn.Conv2d(self.source.width, width, 1), nn.BatchNorm2d(width), nn.ReLU())

    def _leave(self, coarse: Grid, fine: Grid) -> nn.Module:
        """A layer on the grid ``coarse``, then one for every prime factor on the way to the grid ``fine``."""
        factors = [1, *prime_factors(times_finer(fine, coarse))]
        left = [math.prod(factors[step + 1 :]) for step in range(len(factors))]
        widths = [self.channels(coarse), *(self.channels(fine, factor) for factor in left)]
        return nn.Sequential(*(_step(*pair, factor) for pair, factor in zip(pairwise(widths), factors, strict=True)))


def _step(wide: int, narrow: int, factor: int) -> nn.Module:
    """``B wide h w`` -> ``B narrow (factor h) (factor w)``. A token paints from its own place on, as a ResNet's layers
    of stride two read, or around the middle of its patch where the factor is odd."""
    kernel, extra = factor + 1 + factor % 2, 1 - factor % 2
    layer = nn.ConvTranspose2d(wide, narrow, kernel, factor, padding=1, output_padding=extra)
    return nn.Sequential(layer, nn.BatchNorm2d(narrow), nn.ReLU())

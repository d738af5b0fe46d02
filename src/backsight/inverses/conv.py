"""Convolutional inverses: from a grid of tokens, a map or a pyramid of maps to a finer map, or to the image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

from einops import rearrange
from torch import Tensor, nn

from backsight.core import Layout
from backsight.inverses.base import Inverse, times_finer
from backsight.validation import Depth, Positive, Side


class Deconvolution(Inverse):
    """DETR's backbone inverse: a ResNet run backwards (paper-sized for D = 256 and stride 32).

    1x1 and 3x3 layers at the grid's resolution (``8D, 7D, 6D`` channels), then 3x3 layers of stride 2 that halve the
    channels (``4D, 2D, D, ...``) until the image is reached, each with BatchNorm and ReLU; a 3x3 layer to RGB and a
    sigmoid. Without ``batch_norm`` it is the paper's plainer variant: ``8D`` at once, then halving at every step.

    Args:
        expansion: channels of the first layer in units of D.
        head: pixels that the last layer paints at once, a power of two. 1 is the paper's; with 4, the last two layers
            of stride 2 are left out and a pixel shuffle follows the last one, which costs less and leaves no
            checkerboard.
    """

    learning_rate: ClassVar[float] = 3e-3

    def __init__(
        self,
        source: Layout,
        target: Layout,
        *,
        expansion: Positive = 8.0,
        batch_norm: bool = True,
        head: Literal[1, 2, 4, 8] = 1,
    ) -> None:
        super().__init__(source, target)
        unit = expansion * source.width / 8
        doublings = (self.stride() - 1).bit_length() - (head.bit_length() - 1)
        if doublings < 0:
            raise ValueError(f"a head of {head} pixels is larger than a stride of {self.stride()}")
        before = [8 * unit, 7 * unit, 6 * unit] if batch_norm else [8 * unit]
        after = [4 * unit / 2**step for step in range(doublings)]
        widths = [max(1, round(width)) for width in before + after]
        steps: list[nn.Module] = _step(source.width, widths[0], kernel=1, stride=1, batch_norm=batch_norm)
        for index, (wide, narrow) in enumerate(pairwise(widths)):
            stride = 1 if index + 1 < len(before) else 2
            steps += _step(wide, narrow, kernel=3, stride=stride, batch_norm=batch_norm)
        if head == 1:
            steps.append(nn.ConvTranspose2d(widths[-1], 3, 3, padding=1))
        else:
            steps += [nn.Conv2d(widths[-1], 3 * head**2, 3, padding=1), nn.PixelShuffle(head)]
        self.layers: nn.Sequential = nn.Sequential(*steps, nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B 3 H W`` in [0, 1]."""
        return self.crop(self.layers(self.as_map(features)))


def _step(wide: int, narrow: int, *, kernel: int, stride: int, batch_norm: bool) -> list[nn.Module]:
    layer = nn.ConvTranspose2d(wide, narrow, kernel, stride, kernel // 2, output_padding=stride - 1)
    return [layer, *([nn.BatchNorm2d(narrow)] if batch_norm else []), nn.ReLU()]


class Local(Inverse):
    """DETR's *local* backbone inverse (paper, appendix C): every patch is painted from its own token alone.

    ``depth`` 1x1 layers of the token's width with ReLU, then one transposed convolution with kernel = stride, sigmoid.
    Of several resolutions each has such layers, and what they paint is added up before the sigmoid.
    """

    def __init__(self, source: Layout, target: Layout, *, depth: Depth = 4) -> None:
        super().__init__(source, target)
        if not (target.image and source.grids):
            raise ValueError(
                f"{type(self).__name__} reconstructs images from tokens with places, not {target} from {source}"
            )
        finest, *coarser = source.grids
        self.coarser: nn.ModuleList = nn.ModuleList(nn.Sequential(*self._level(grid, depth)) for grid in coarser)
        self.layers: nn.Sequential = nn.Sequential(*self._level(finest, depth), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B 3 H W`` in [0, 1]."""
        finest, *coarser = self.as_maps(features)
        painted = self.crop(self.layers[:-1](finest))
        for paint, level in zip(self.coarser, coarser, strict=True):
            painted = painted + self.crop(paint(level))
        return self.layers[-1](painted)

    def _level(self, grid: Grid, depth: int) -> list[nn.Module]:
        width, stride = self.source.width, times_finer(self.target.grid, grid)
        mixing = [each for _ in range(depth) for each in (nn.Conv2d(width, width, 1), nn.ReLU())]
        return [*mixing, nn.ConvTranspose2d(width, 3, stride, stride)]


class Patch(Inverse):
    """ViT's backbone inverse: local to a patch, by transposed convolutions with kernel = stride.

    One layer for every prime factor of the patch size; for ``p = 16`` and ``D = 768`` the widths are the paper's
    768 -> 256 -> 64 -> 16 -> 3, with BatchNorm and ReLU between, a sigmoid at the end.

    Args:
        widths: channels between the layers; default ``D/3, D/12, D/48, ...``, at least 16.
        whole: a single layer with kernel = stride = patch size.
        subtract_position: first subtract the forward model's position embedding.
    """

    def __init__(
        self,
        source: Layout,
        target: Layout,
        constants: Mapping[str, Tensor] | None,
        *,
        widths: Sequence[Side] | None = None,
        whole: bool = False,
        subtract_position: bool = False,
    ) -> None:
        super().__init__(source, target)
        factors = [self.stride()] if whole else prime_factors(self.stride())
        between = widths or [max(16, round(source.width / 3 / 4**step)) for step in range(len(factors) - 1)]
        if len(between) != len(factors) - 1:
            raise ValueError(f"a patch of {self.stride()} pixels takes {len(factors) - 1} widths, got {len(between)}")
        steps: list[nn.Module] = []
        for factor, (wide, narrow) in zip(factors, pairwise([source.width, *between, 3]), strict=True):
            steps += [nn.ConvTranspose2d(wide, narrow, factor, factor), nn.BatchNorm2d(narrow), nn.ReLU()]
        self.layers: nn.Sequential = nn.Sequential(*steps[:-2], nn.Sigmoid())
        self.position: Tensor | None
        shape = (source.tokens - source.prefix, source.width)
        self.register_buffer("position", self.constant(constants, "position", shape) if subtract_position else None)

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B 3 H W`` in [0, 1]."""
        if self.position is not None:
            features = features[:, self.source.prefix :] - self.position
            features = nn.functional.pad(features, (0, 0, self.source.prefix, 0))
        return self.crop(self.layers(self.as_map(features)))


def prime_factors(number: int) -> list[int]:
    """The prime factors of ``number``, the smallest first."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors


# ---- stages of a convolutional network, run backwards


NARROWEST = 16
"""Channels below which no layer goes on the way to the image."""


class ResidualBlock(nn.Module):
    """A bottleneck whose sum has no ReLU after it, so that features of either sign pass: ``B D h w`` -> ``B D h w``.

    Up to 128 channels are kept inside, of more a quarter.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inside = min(width, max(128, width // 4))
        self.layers: nn.Sequential = nn.Sequential(
            *(nn.Conv2d(width, inside, 1, bias=False), nn.BatchNorm2d(inside), nn.ReLU()),
            *(nn.Conv2d(inside, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside), nn.ReLU()),
            nn.Conv2d(inside, width, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """``B D h w`` -> ``B D h w``."""
        return maps + self.layers(maps)


class ResidualStage(Inverse):
    """Residual blocks on the source's map; then, for every halving that the stage made, an upsampling and one more.

    Grids are resized to the very size of the target, so they may have been rounded up or down. Channels go to the
    target's width, or halve at every step towards the image. Prefix tokens of the source are left out.

    Args:
        depth: blocks before the first upsampling.
    """

    def __init__(self, source: Layout, target: Layout, *, depth: Depth = 2) -> None:
        super().__init__(source, target)
        if target.prefix:
            raise ValueError("it paints maps, and its target has tokens before the grid, such as a class token")
        self.paints: bool = target.image
        grids, width = _grids_between(source.grid, target.grid), source.width
        steps: list[nn.Module] = [nn.BatchNorm2d(width), *(ResidualBlock(width) for _ in range(depth))]
        for grid in grids:
            narrow = max(NARROWEST, width // 2) if self.paints else target.width
            steps += [nn.Conv2d(width, narrow, 1), nn.Upsample(grid), ResidualBlock(narrow)]
            width = narrow
        last = nn.Conv2d(width, target.width, 3, padding=1) if self.paints else nn.Conv2d(width, target.width, 1)
        self.layers: nn.Sequential = nn.Sequential(*steps, last, nn.Sigmoid() if self.paints else nn.Identity())

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B N' D'`` on the target's grid, or ``B 3 H W`` in [0, 1]."""
        maps = self.layers(self.as_map(features))
        return maps if self.paints else rearrange(maps, "b d h w -> b (h w) d")


def _grids_between(source: tuple[int, int], target: tuple[int, int]) -> list[tuple[int, int]]:
    """The grids on the way from ``source`` to the finer ``target``, each about twice the one before."""
    if any(own > wanted for own, wanted in zip(source, target, strict=True)):
        raise ValueError(f"it goes to finer grids, and its target's {target} is coarser than its own {source}")
    grids: list[tuple[int, int]] = []
    while target != source and (not grids or target[0] > 1.5 * source[0] or target[1] > 1.5 * source[1]):
        grids.insert(0, target)
        target = (max(source[0], -(-target[0] // 2)), max(source[1], -(-target[1] // 2)))
    return grids


# ---- a pyramid of maps, from the coarsest level to the finest


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

    def __init__(self, source: Layout, target: Layout, *, level: int | None = None, expansion: Positive = 4.0) -> None:
        super().__init__(source, target)
        if not target.image:
            raise ValueError(f"{type(self).__name__} reconstructs images, not {target}")
        count = len(source.grids)
        if not 0 <= (level or 0) < count:
            raise ValueError(f"there is no level {level or 0}: {source} has {count}, the finest is 0")
        self.widest: float = expansion * source.width
        self.levels: list[int] = list(range(count))[::-1] if level is None else [level]
        self.grids: list[tuple[Side, Side]] = [*(source.grids[each] for each in self.levels), target.grid]
        widths = [self.channels(grid) for grid in self.grids[:-1]]
        self.enter: nn.ModuleList = nn.ModuleList(
            nn.Sequential(nn.Conv2d(source.width, width, 1), nn.BatchNorm2d(width), nn.ReLU()) for width in widths
        )
        self.leave: nn.ModuleList = nn.ModuleList(self._leave(*pair) for pair in pairwise(self.grids))
        self.paint: nn.Sequential = nn.Sequential(
            nn.ConvTranspose2d(self.channels(target.grid), 3, 3, padding=1), nn.Sigmoid()
        )

    def channels(self, grid: Grid, factor: int = 1) -> int:
        """The channels on ``grid``, or on one with steps ``factor`` times as long."""
        return max(1, round(self.widest * min(1, factor * times_finer(self.target.grid, grid) / 16)))

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B 3 H W`` in [0, 1]."""
        image: Tensor | float = 0.0
        maps = self.as_maps(features)
        for level, enter, leave, (h, w) in zip(self.levels, self.enter, self.leave, self.grids[1:], strict=True):
            image = leave(enter(maps[level]) + image)[..., :h, :w]
        return self.paint(image)

    def _leave(self, coarse: Grid, fine: Grid) -> nn.Module:
        """A layer on the grid ``coarse``, then one for every prime factor on the way to the grid ``fine``."""
        factors = [1, *prime_factors(times_finer(fine, coarse))]
        left = [math.prod(factors[step + 1 :]) for step in range(len(factors))]
        widths = [self.channels(coarse), *(self.channels(fine, factor) for factor in left)]
        return nn.Sequential(
            *(_finer_layer(*pair, factor) for pair, factor in zip(pairwise(widths), factors, strict=True))
        )


def _finer_layer(wide: int, narrow: int, factor: int) -> nn.Module:
    """``B wide h w`` -> ``B narrow (factor h) (factor w)``. A token paints from its own place on, as a ResNet's layers
    of stride two read, or around the middle of its patch where the factor is odd."""
    kernel, extra = factor + 1 + factor % 2, 1 - factor % 2
    layer = nn.ConvTranspose2d(wide, narrow, kernel, factor, padding=1, output_padding=extra)
    return nn.Sequential(layer, nn.BatchNorm2d(narrow), nn.ReLU())

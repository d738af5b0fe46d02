"""Inverses from a grid of tokens to the image, by transposed convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from backsight.core import Layout
from backsight.inverses.base import Inverse
from backsight.validation import Positive


class Deconvolution(Inverse):
    """DETR's backbone inverse: a ResNet run backwards (paper-sized for D = 256 and stride 32).

    1x1 and 3x3 layers at the grid's resolution (``8D, 7D, 6D`` channels), then 3x3 layers of stride 2 that halve the
    channels (``4D, 2D, D, ...``) until the image is reached, each with BatchNorm and ReLU; a 3x3 layer to RGB and a
    sigmoid. Without ``batch_norm`` it is the paper's plainer variant: ``8D`` at once, then halving at every step.

    Args:
        expansion: channels of the first layer in units of D.
    """

    learning_rate: ClassVar[float] = 3e-3

    def __init__(
        self,
        source: Layout,
        target: Layout,
        constants: Mapping[str, Tensor] | None = None,
        *,
        expansion: Positive = 8.0,
        batch_norm: bool = True,
    ) -> None:
        super().__init__(source, target, constants)
        unit = expansion * source.width / 8
        doublings = (self.stride() - 1).bit_length()
        before = [8 * unit, 7 * unit, 6 * unit] if batch_norm else [8 * unit]
        after = [4 * unit / 2**step for step in range(doublings)]
        widths = [max(1, round(width)) for width in before + after]
        steps: list[nn.Module] = _step(source.width, widths[0], kernel=1, stride=1, batch_norm=batch_norm)
        for index, (wide, narrow) in enumerate(pairwise(widths)):
            stride = 1 if index + 1 < len(before) else 2
            steps += _step(wide, narrow, kernel=3, stride=stride, batch_norm=batch_norm)
        self.layers = nn.Sequential(*steps, nn.ConvTranspose2d(widths[-1], 3, 3, padding=1), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B 3 H W`` in [0, 1]."""
        return self.crop(self.layers(self.as_map(features)))


def _step(wide: int, narrow: int, *, kernel: int, stride: int, batch_norm: bool) -> list[nn.Module]:
    layer = nn.ConvTranspose2d(wide, narrow, kernel, stride, kernel // 2, output_padding=stride - 1)
    return [layer, *([nn.BatchNorm2d(narrow)] if batch_norm else []), nn.ReLU()]


class Local(Inverse):
    """DETR's *local* backbone inverse (paper, appendix C): every patch is painted from its own token alone.

    ``depth`` 1x1 layers of the token's width with ReLU, then one transposed convolution with kernel = stride, sigmoid.
    """

    def __init__(
        self, source: Layout, target: Layout, constants: Mapping[str, Tensor] | None = None, *, depth: int = 4
    ) -> None:
        super().__init__(source, target, constants)
        width, stride = source.width, self.stride()
        mixing = [each for _ in range(depth) for each in (nn.Conv2d(width, width, 1), nn.ReLU())]
        self.layers = nn.Sequential(*mixing, nn.ConvTranspose2d(width, 3, stride, stride), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B 3 H W`` in [0, 1]."""
        return self.crop(self.layers(self.as_map(features)))


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
        constants: Mapping[str, Tensor] | None = None,
        *,
        widths: Sequence[int] | None = None,
        whole: bool = False,
        subtract_position: bool = False,
    ) -> None:
        super().__init__(source, target, constants)
        factors = [self.stride()] if whole else prime_factors(self.stride())
        between = widths or [max(16, round(source.width / 3 / 4**step)) for step in range(len(factors) - 1)]
        if len(between) != len(factors) - 1:
            raise ValueError(f"a patch of {self.stride()} pixels takes {len(factors) - 1} widths, got {len(between)}")
        steps: list[nn.Module] = []
        for factor, (wide, narrow) in zip(factors, pairwise([source.width, *between, 3]), strict=True):
            steps += [nn.ConvTranspose2d(wide, narrow, factor, factor), nn.BatchNorm2d(narrow), nn.ReLU()]
        self.layers = nn.Sequential(*steps[:-2], nn.Sigmoid())
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

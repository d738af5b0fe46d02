"""Stages of a convolutional network run backwards: from a map to a finer map, or to the image."""

from __future__ import annotations

from collections.abc import Mapping

from einops import rearrange
from torch import Tensor, nn

from backsight.core import Layout
from backsight.inverses.base import Inverse

NARROWEST = 16
"""Channels below which no layer goes on the way to the image."""


class ResidualBlock(nn.Module):
    """A bottleneck whose sum has no ReLU after it, so that features of either sign pass: ``B D h w`` -> ``B D h w``.

    Up to 128 channels are kept inside, of more a quarter.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inside = min(width, max(128, width // 4))
        self.layers = nn.Sequential(
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

    def __init__(
        self, source: Layout, target: Layout, constants: Mapping[str, Tensor] | None = None, *, depth: int = 2
    ) -> None:
        super().__init__(source, target, constants)
        if target.prefix:
            raise ValueError("it paints maps, and its target has tokens before the grid, such as a class token")
        self.paints = target.width == 3
        grids, width = _grids_between(source.grid, target.grid), source.width
        steps: list[nn.Module] = [nn.BatchNorm2d(width), *(ResidualBlock(width) for _ in range(depth))]
        for grid in grids:
            narrow = max(NARROWEST, width // 2) if self.paints else target.width
            steps += [nn.Conv2d(width, narrow, 1), nn.Upsample(grid), ResidualBlock(narrow)]
            width = narrow
        last = nn.Conv2d(width, target.width, 3, padding=1) if self.paints else nn.Conv2d(width, target.width, 1)
        self.layers = nn.Sequential(*steps, last, nn.Sigmoid() if self.paints else nn.Identity())

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

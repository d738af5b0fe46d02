"""Swin's stages run backwards: its blocks, then patch splitting in place of patch merging."""

from __future__ import annotations

from typing import Any, ClassVar

from einops import rearrange
from torch import Tensor, nn

from backsight.core import Layout
from backsight.inverses.base import Inverse, expect_heads
from backsight.validation import Depth, Side


class SwinStage(Inverse):
    """The stage's own Swin blocks on its map, then, where the target is finer, a split of every token into 2 x 2.

    Splitting mirrors merging: LayerNorm, a linear layer to four times the target's width, an unfold.

    Args:
        shift_first: shift the windows of the first block and every second one after it, not those of the others.
    """

    learning_rate: ClassVar[float] = 1e-4

    def __init__(
        self,
        source: Layout,
        target: Layout,
        *,
        depth: Depth = 2,
        heads: Side = 4,
        window: Side | tuple[Side, Side] = 7,
        shift_first: bool = False,
    ) -> None:
        super().__init__(source, target)
        self.expect_no_prefix()
        if target.image:
            raise ValueError("it reconstructs a finer map, not the image: the stage before it takes patch")
        from timm.models.swin_transformer import SwinTransformerBlock

        block: Any = SwinTransformerBlock
        grid, width = source.grid, source.width
        expect_heads(width, heads)
        side = tuple(window) if isinstance(window, list | tuple) else (window, window)
        fitting = tuple(min(pair) for pair in zip(side, grid, strict=True))
        shift = tuple(0 if own >= whole else own // 2 for own, whole in zip(fitting, grid, strict=True))
        self.blocks: nn.Sequential = nn.Sequential(
            *(
                block(width, grid, heads, window_size=fitting, shift_size=shift if index % 2 != shift_first else (0, 0))
                for index in range(depth)
            )
        )
        self.factor: int = target.grid[0] // grid[0]
        if tuple(side * self.factor for side in grid) != target.grid:
            raise ValueError(f"the grid {target.grid} is no multiple of {grid}: a Swin inverse cannot split to it")
        same = self.factor == 1 and width == target.width
        self.norm: nn.Identity | nn.LayerNorm = nn.Identity() if same else nn.LayerNorm(width)
        self.upsample: nn.Identity | nn.Linear = (
            nn.Identity() if same else nn.Linear(width, self.factor**2 * target.width, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B N' D'`` on the target's grid."""
        h, w = self.source.grid
        tokens = self.blocks(rearrange(features, "b (h w) d -> b h w d", h=h, w=w))
        split = self.upsample(self.norm(tokens))
        return rearrange(split, "b h w (p q d) -> b (h p w q) d", p=self.factor, q=self.factor)

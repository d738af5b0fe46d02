"""Inverses over the tokens of several resolutions, which look at a few places of every level instead of at all tokens.

Deformable attention (Zhu et al., *Deformable DETR*, ICLR 2021, eq. 3) costs as much as there are tokens, where ordinary
attention costs their square: a 480 x 640 image has 6380 tokens on four levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from backsight.core import Layout
from backsight.inverses.base import Inverse, expect_heads
from backsight.inverses.transformer import sine_positions
from backsight.validation import Depth, Side

Grids = Sequence[tuple[int, int]]


def token_centres(grids: Grids) -> Tensor:
    """Where the tokens of all levels are in the image: (x, y) in 0..1, ``N 2``."""
    levels = []
    for grid in grids:
        rows, columns = ((torch.arange(side) + 0.5) / side for side in grid)
        levels.append(torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1))
    return torch.cat(levels)


class PyramidPosition(nn.Module):
    """The position of every token: sines of its place in the image, and a learned vector for its level."""

    def __init__(self, grids: Grids, width: int) -> None:
        super().__init__()
        index = torch.cat([torch.full((h * w,), level) for level, (h, w) in enumerate(grids)])
        self.level: nn.Parameter = nn.Parameter(torch.randn(len(grids), width))
        self.index: Tensor
        self.sine: Tensor
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("sine", torch.cat([sine_positions(g, width, end=0.5) for g in grids]), persistent=False)

    def forward(self) -> Tensor:
        """``N D``."""
        return self.sine + self.level[self.index]


class DeformableAttention(nn.Module):
    """Every token looks at ``points`` places of each level, in each of ``heads``; it learns where, and how much.

    The places start on rays around the token itself, one direction for each head, one step of the grid apart. The
    tokens that look are those of ``grids`` too, or of other grids, ``lookers``.
    """

    def __init__(self, grids: Grids, width: int, heads: int, points: int, lookers: Grids | None = None) -> None:
        super().__init__()
        expect_heads(width, heads)
        if points < 1:
            raise ValueError(f"it looks at {points} places a level: take at least one")
        self.grids: list[tuple[int, int]] = list(grids)
        self.shape: tuple[int, int, int] = (heads, len(grids), points)
        places = math.prod(self.shape)
        self.sampling_offsets: nn.Linear = nn.Linear(width, 2 * places)
        self.attention_weights: nn.Linear = nn.Linear(width, places)
        self.value_proj: nn.Linear = nn.Linear(width, width)
        self.output_proj: nn.Linear = nn.Linear(width, width)
        self.centres: Tensor
        self.steps: Tensor
        centres = token_centres(lookers or grids).view(-1, 1, 1, 1, 2)
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("steps", torch.tensor([(1 / w, 1 / h) for h, w in grids]).view(-1, 1, 2), persistent=False)
        self._initialise()

    def forward(self, queries: Tensor, values: Tensor) -> Tensor:
        """``B N D`` that say where to look, ``B N' D`` that are seen there -> ``B N D``."""
        heads, levels, points = self.shape
        offsets = rearrange(self.sampling_offsets(queries), "b n (m l p c) -> b n m l p c", m=heads, l=levels, p=points)
        weights = rearrange(self.attention_weights(queries), "b n (m k) -> b n m k", m=heads).softmax(-1)
        places = self.centres + offsets * self.steps
        seen = deform(self.value_proj(values), places, weights.unflatten(-1, (levels, points)), self.grids)
        return self.output_proj(seen)

    def _initialise(self) -> None:
        heads, levels, points = self.shape
        angles = torch.arange(heads) * (2 * math.pi / heads)
        rays = torch.stack([angles.cos(), angles.sin()], -1)
        rays = rays / rays.abs().amax(-1, keepdim=True)
        lengths = torch.arange(1, points + 1).view(-1, 1)
        with torch.no_grad():
            for layer in (self.sampling_offsets, self.attention_weights, self.value_proj, self.output_proj):
                layer.bias.zero_()
            self.sampling_offsets.weight.zero_()
            self.attention_weights.weight.zero_()
            self.sampling_offsets.bias.copy_((rays.view(heads, 1, 1, 2) * lengths).expand(-1, levels, -1, -1).flatten())
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)


def deform(values: Tensor, places: Tensor, weights: Tensor, grids: Grids) -> Tensor:
    """Weighted sums of what is seen at ``places``, interpolated between tokens, zero outside of the image.

    ``values`` ``B N D``, the tokens of all ``grids``; ``places`` ``B Q heads levels points 2`` as (x, y) in 0..1;
    ``weights`` ``B Q heads levels points`` -> ``B Q D``.
    """
    batch, heads = len(values), places.shape[2]
    maps = rearrange(values, "b n (m d) -> (b m) d n", m=heads).split([h * w for h, w in grids], -1)
    spots = rearrange(2 * places - 1, "b q m l p c -> l (b m) q p c")
    shares = rearrange(weights, "b q m l p -> l (b m) 1 q p")
    levels = zip(maps, grids, spots, shares, strict=True)
    seen = [_interpolate(level.unflatten(-1, grid), spot, share) for level, grid, spot, share in levels]
    return rearrange(torch.stack(seen).sum(0), "(b m) d q -> b q (m d)", b=batch)


def _interpolate(level: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """``G d h w`` at ``G Q points 2`` in -1..1, weighted by ``G 1 Q points`` -> ``G d Q``."""
    # Places keep single precision: half of it would move them by a part of a token.
    seen = nn.functional.grid_sample(level.to(places.dtype), places, align_corners=False)
    return (seen * weights).sum(-1)


class Mixing(nn.Module):
    """Deformable DETR's encoder layer, post-norm: deformable attention among tokens, then a small network on each."""

    def __init__(self, grids: Grids, width: int, heads: int, points: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn: DeformableAttention = DeformableAttention(grids, width, heads, points)
        self.linear1: nn.Linear = nn.Linear(width, feedforward)
        self.linear2: nn.Linear = nn.Linear(feedforward, width)
        self.norm1: nn.LayerNorm = nn.LayerNorm(width)
        self.norm2: nn.LayerNorm = nn.LayerNorm(width)
        self.dropout: nn.Dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """``B N D``, ``N D`` -> ``B N D``."""
        tokens = self.norm1(tokens + self.dropout(self.self_attn(tokens + position, tokens)))
        return self.norm2(tokens + self.dropout(self.linear2(self.linear1(tokens).relu())))


class Reading(nn.Module):
    """Ordinary attention of the tokens to the object queries, post-norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.multihead_attn: nn.MultiheadAttention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.norm: nn.LayerNorm = nn.LayerNorm(width)
        self.dropout: nn.Dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor, queries: Tensor, query_position: Tensor) -> Tensor:
        """Tokens ``B N D`` at ``N D``, queries ``B Q D`` at ``Q D`` -> ``B N D``."""
        read, _ = self.multihead_attn(tokens + position, queries + query_position, queries, need_weights=False)
        return self.norm(tokens + self.dropout(read))


class DeformableEncoder(Inverse):
    """Deformable DETR's encoder inverse: the encoder's own structure with the flow reversed, on the target's levels.

    Where these are not the source's own, tokens at their places first look at the source's. A linear layer follows the
    last: what it reconstructs is not normalised token by token, as what its layers give is.
    """

    def __init__(
        self,
        source: Layout,
        target: Layout,
        *,
        depth: Depth = 6,
        heads: Side = 8,
        feedforward: Side = 1024,
        points: Side = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(source, target)
        self.expect_no_prefix()
        if target.image or not (source.grids and target.grids):
            raise ValueError(f"it leads from and to tokens with places in the image, not from {source} to {target}")
        width, grids = source.width, target.grids
        self.position: PyramidPosition = PyramidPosition(grids, width)
        elsewhere = source.grids != grids
        self.look: DeformableAttention | None = (
            DeformableAttention(source.grids, width, heads, points, grids) if elsewhere else None
        )
        layers = (Mixing(grids, width, heads, points, feedforward, dropout) for _ in range(depth))
        self.layers: nn.ModuleList = nn.ModuleList(layers)
        self.end: nn.Linear = nn.Linear(width, target.width)

    @property
    def last(self) -> nn.Module:
        """The linear layer at the end."""
        return self.end

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B N D'``."""
        position = self.position()
        if self.look is not None:
            features = self.look(position.expand(len(features), -1, -1), features)
        for layer in self.layers:
            features = layer(features, position)
        return self.end(features)


class DeformableDecoder(Inverse):
    """Deformable DETR's decoder inverse: blank tokens at every place of every level read the object queries' features,
    then mix by deformable attention, again and again. The queries' own position is learned here, since it has no place
    in the image."""

    def __init__(
        self,
        source: Layout,
        target: Layout,
        *,
        depth: Depth = 6,
        heads: Side = 8,
        feedforward: Side = 1024,
        points: Side = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(source, target)
        self.expect_no_prefix()
        if source.grids or target.image or not target.grids:
            raise ValueError(f"it leads from object queries to tokens with places in the image, not to {target}")
        width, grids = source.width, target.grids
        expect_heads(width, heads)
        self.position: PyramidPosition = PyramidPosition(grids, width)
        self.query_position: nn.Parameter = nn.Parameter(torch.randn(source.tokens, width))
        self.reading: nn.ModuleList = nn.ModuleList(Reading(width, heads, dropout) for _ in range(depth))
        self.mixing: nn.ModuleList = nn.ModuleList(
            Mixing(grids, width, heads, points, feedforward, dropout) for _ in range(depth)
        )
        self.end: nn.Linear = nn.Linear(width, target.width)

    @property
    def last(self) -> nn.Module:
        """The linear layer at the end."""
        return self.end

    def forward(self, features: Tensor) -> Tensor:
        """``B Q D`` -> ``B N D'``."""
        position = self.position()
        tokens = torch.zeros_like(position).expand(len(features), -1, -1)
        for reading, mixing in zip(self.reading, self.mixing, strict=True):
            tokens = mixing(reading(tokens, position, features, self.query_position), position)
        return self.end(tokens)

"""Inverses with the structure of the component that they invert: DETR's encoder and decoder, ViT's blocks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from backsight.core import Layout
from backsight.inverses.base import Inverse, Moments, expect_heads
from backsight.inverses.ridge import Ridge, RidgeMoments
from backsight.validation import Depth, Side


def sine_positions(grid: tuple[int, int], width: int, temperature: float = 10_000.0, end: float = 1.0) -> Tensor:
    """DETR's position encoding of a grid ``h w``: sines and cosines of the row, then of the column, ``h*w D``.

    A token stands at the ``end`` of its place, as in DETR, or in its middle (0.5), as in Deformable DETR.
    """
    h, w = grid
    rows = (torch.arange(h, dtype=torch.float32) + end) / (h + 1e-6) * 2 * math.pi
    columns = (torch.arange(w, dtype=torch.float32) + end) / (w + 1e-6) * 2 * math.pi
    half = width // 2
    frequencies = temperature ** (2 * (torch.arange(half) // 2) / half)

    def encode(angles: Tensor) -> Tensor:
        phases = angles[:, None] / frequencies
        return torch.stack([phases[:, 0::2].sin(), phases[:, 1::2].cos()], -1).flatten(1)

    by_row = encode(rows)[:, None].expand(h, w, half)
    by_column = encode(columns)[None].expand(h, w, half)
    return torch.cat([by_row, by_column], -1).flatten(0, 1)


class EncoderLayer(nn.Module):
    """DETR's encoder layer: post-norm, ReLU, the position added to queries and keys alone."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn: nn.MultiheadAttention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1: nn.Linear = nn.Linear(width, feedforward)
        self.linear2: nn.Linear = nn.Linear(feedforward, width)
        self.norm1: nn.LayerNorm = nn.LayerNorm(width)
        self.norm2: nn.LayerNorm = nn.LayerNorm(width)
        self.dropout: nn.Dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """``B N D``, ``N D`` -> ``B N D``."""
        placed = tokens + position
        mixed, _ = self.self_attn(placed, placed, tokens, need_weights=False)
        tokens = self.norm1(tokens + self.dropout(mixed))
        return self.norm2(tokens + self.dropout(self.linear2(self.linear1(tokens).relu())))


class DecoderLayer(nn.Module):
    """DETR's decoder layer: self-attention of the queries, cross-attention to the memory, post-norm."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn: nn.MultiheadAttention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.multihead_attn: nn.MultiheadAttention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1: nn.Linear = nn.Linear(width, feedforward)
        self.linear2: nn.Linear = nn.Linear(feedforward, width)
        self.norm1: nn.LayerNorm = nn.LayerNorm(width)
        self.norm2: nn.LayerNorm = nn.LayerNorm(width)
        self.norm3: nn.LayerNorm = nn.LayerNorm(width)
        self.dropout: nn.Dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor, memory: Tensor, memory_position: Tensor) -> Tensor:
        """Queries ``B N D`` at ``N D``, memory ``B Q D`` at ``Q D`` -> ``B N D``."""
        placed = tokens + position
        mixed, _ = self.self_attn(placed, placed, tokens, need_weights=False)
        tokens = self.norm1(tokens + self.dropout(mixed))
        read, _ = self.multihead_attn(tokens + position, memory + memory_position, memory, need_weights=False)
        tokens = self.norm2(tokens + self.dropout(read))
        return self.norm3(tokens + self.dropout(self.linear2(self.linear1(tokens).relu())))


class Encoder(Inverse):
    """DETR's encoder inverse: the encoder's own structure with the flow reversed, at the same sine positions."""

    def __init__(
        self,
        source: Layout,
        target: Layout,
        *,
        depth: Depth = 6,
        heads: Side = 8,
        feedforward: Side = 2048,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(source, target)
        self.expect_same("tokens", "width")
        self.expect_no_prefix()
        expect_heads(source.width, heads)
        layers = (EncoderLayer(source.width, heads, feedforward, dropout) for _ in range(depth))
        self.layers: nn.ModuleList = nn.ModuleList(layers)
        self.position: Tensor
        self.register_buffer("position", sine_positions(target.grid, source.width), persistent=False)
        _initialise(self.layers)

    @property
    def last(self) -> nn.Module:
        """The last layer's second LayerNorm."""
        return self.layers[-1].norm2  # pyright: ignore[reportReturnType]

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B N D``."""
        for layer in self.layers:
            features = layer(features, self.position)
        return features


class Decoder(Inverse):
    """DETR's decoder inverse: blank tokens, one for every place of the encoder's grid, that attend to each other and
    to the object queries' features. The queries' own position is learned here, since it has no place in the image; so
    is that of the target's prefix tokens.

    Args:
        norm: a LayerNorm after the last layer, as the forward decoder has.
    """

    def __init__(
        self,
        source: Layout,
        target: Layout,
        *,
        depth: Depth = 6,
        heads: Side = 8,
        feedforward: Side = 2048,
        dropout: float = 0.0,
        norm: bool = True,
    ) -> None:
        super().__init__(source, target)
        self.expect_same("width")
        self.expect_no_prefix(in_target=True)
        width = target.width
        expect_heads(width, heads)
        layers = (DecoderLayer(width, heads, feedforward, dropout) for _ in range(depth))
        self.layers: nn.ModuleList = nn.ModuleList(layers)
        self.norm: nn.LayerNorm | nn.Identity = nn.LayerNorm(width) if norm else nn.Identity()
        self.position: Tensor
        self.register_buffer("position", sine_positions(target.grid, width), persistent=False)
        _initialise(self.layers)
        self.query_position: nn.Parameter = nn.Parameter(torch.randn(source.tokens, width))
        self.prefix_position: nn.Parameter | None = (
            nn.Parameter(torch.randn(target.prefix, width)) if target.prefix else None
        )

    @property
    def last(self) -> nn.Module:
        """The LayerNorm at the end."""
        return self.norm if isinstance(self.norm, nn.LayerNorm) else self.layers[-1].norm3  # pyright: ignore[reportReturnType]

    def forward(self, features: Tensor) -> Tensor:
        """``B Q D`` -> ``B N D``."""
        position = self.position
        if self.prefix_position is not None:
            position = torch.cat([self.prefix_position, position])
        tokens = torch.zeros_like(position).expand(len(features), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, position, features, self.query_position)
        return self.norm(tokens)


class Blocks(Inverse):
    """ViT's encoder inverse: pre-norm blocks like the encoder's own, over all tokens, prefix included. They have the
    target's width; where the source has another, a linear layer comes before them.

    Args:
        epsilon: added to the variance in every LayerNorm; timm's own by default.
        start: ``ridge`` puts a linear layer and an offset for every token before them in any case, which begin as the
            ridge regression of the target; the blocks add nothing to it at first, and learn what it leaves.
    """

    learning_rate: ClassVar[float] = 1e-4

    def __init__(
        self,
        source: Layout,
        target: Layout,
        *,
        depth: Depth = 12,
        heads: Side = 12,
        mlp_ratio: float = 4.0,
        epsilon: float = 1e-6,
        start: Literal["none", "ridge"] = "none",
    ) -> None:
        super().__init__(source, target)
        self.expect_same("tokens")
        from timm.models.vision_transformer import Block

        block: Any = Block
        norm = partial(nn.LayerNorm, eps=epsilon)
        options = {"mlp_ratio": mlp_ratio, "qkv_bias": True, "norm_layer": norm}
        width = target.width
        expect_heads(width, heads)
        plain = source.width == width and start == "none"
        self.enter: nn.Identity | nn.Linear = nn.Identity() if plain else nn.Linear(source.width, width)
        self.position: nn.Parameter | None = (
            nn.Parameter(torch.zeros(target.tokens, width)) if start == "ridge" else None
        )
        self.blocks: nn.Sequential = nn.Sequential(*(block(width, heads, **options) for _ in range(depth)))

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B N D'``."""
        entering = self.enter(features)
        return self.blocks(entering if self.position is None else entering + self.position)

    def moments(self) -> Moments | None:
        """Those of the ridge regression, if it begins with one."""
        if self.position is None:
            return None
        return Ridge(self.source, self.target, reads="token").to(self.position.device).moments()

    @torch.no_grad()
    def begin(self, moments: Moments) -> None:
        """Begin as the ridge regression."""
        assert isinstance(moments, RidgeMoments)
        assert isinstance(self.enter, nn.Linear)
        assert self.position is not None
        weight, offset = moments.solve()
        self.enter.weight.copy_(weight.T)
        self.enter.bias.zero_()
        self.position.copy_(offset)
        for name, parameter in self.blocks.named_parameters():
            if name.endswith(("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias")):
                parameter.zero_()


def _initialise(layers: nn.Module) -> None:
    """Xavier for every matrix, as DETR does."""
    for parameter in layers.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)

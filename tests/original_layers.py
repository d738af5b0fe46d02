"""DETR's layers and positions as its own authors state them, tokens first: a second implementation, for the tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def positions(h: int, w: int, width: int) -> Tensor:
    """DETR's normalised sine encoding, as its own code computes it: ``h*w 1 D``."""
    ones = torch.ones(1, h, w)
    angles = []
    for axis in (1, 2):
        steps = ones.cumsum(axis)
        steps = steps / (steps.narrow(axis, steps.shape[axis] - 1, 1) + 1e-6) * 2 * math.pi
        scale = 10_000 ** (2 * torch.arange(width // 2).div(2, rounding_mode="floor") / (width // 2))
        phases = steps[..., None] / scale
        angles.append(torch.stack((phases[..., 0::2].sin(), phases[..., 1::2].cos()), 4).flatten(3))
    return torch.cat(angles, 3).permute(0, 3, 1, 2).flatten(2).permute(2, 0, 1)


class PostNormLayer(nn.Module):
    """A layer of the original DETR, tokens first; a decoder's where it is told to cross-attend."""

    def __init__(self, crosses: bool, width: int = 32, heads: int = 2, feedforward: int = 40) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        if crosses:
            self.multihead_attn, self.norm3 = nn.MultiheadAttention(width, heads), nn.LayerNorm(width)

    def forward(self, tokens: Tensor, position: Tensor, memory: Tensor | None, where: Tensor | None) -> Tensor:
        placed = tokens + position
        tokens = self.norm1(tokens + self.self_attn(placed, placed, tokens)[0])
        last = self.norm2
        if memory is not None and where is not None:
            read = self.multihead_attn(tokens + position, memory + where, memory)[0]
            tokens, last = self.norm2(tokens + read), self.norm3
        return last(tokens + self.linear2(functional.relu(self.linear1(tokens))))

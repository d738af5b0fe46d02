"""The patch embedding undone by linear algebra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from backsight.core import Layout
from backsight.devices import exact
from backsight.inverses.base import Inverse


class Analytic(Inverse):
    """ViT's backbone inverse in closed form: subtract position and bias, apply the pseudo-inverse of the projection.

    Exact, but for rounding, on features of a real image where ``D >= 3 p p``; ill-conditioned, so it amplifies the
    errors of reconstructed features (the paper's reason for learning this inverse instead). The result is not clipped.
    """

    trainable: ClassVar[bool] = False

    def __init__(self, source: Layout, target: Layout, constants: Mapping[str, Tensor] | None) -> None:
        super().__init__(source, target)
        width, patch = source.width, self.stride()
        projection = self.constant(constants, "projection", (width, 3, patch, patch))
        bias = self.constant(constants, "bias", (width,))
        position = self.constant(constants, "position", (source.tokens - source.prefix, width))
        self.inverse: Tensor
        self.offset: Tensor
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("inverse", torch.linalg.pinv(exact(projection.flatten(1))).float())
        self.register_buffer("offset", position + bias)
        self.register_buffer("mean", self.constant(constants, "mean", (3,)).view(3, 1, 1))
        self.register_buffer("std", self.constant(constants, "std", (3,)).view(3, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B 3 H W``, about in [0, 1]."""
        h, w = self.source.grid
        patches = (features[:, self.source.prefix :] - self.offset) @ self.inverse.T
        stride = self.stride()
        images = rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=h, w=w, p=stride, q=stride)
        return self.crop(images * self.std + self.mean)

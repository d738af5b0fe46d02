"""What every inverse is: a network from the features of one stage to those of the stage before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from backsight.core import Layout


class Inverse(nn.Module, ABC):
    """One inverse component, ``x_b -> x_{b-1}`` (paper, eq. 1).

    It receives features and, when built, the static layouts of its ``source`` and ``target``; never a tensor of the
    forward pass. ``constants`` are static tensors of the forward model, for the few inverses that state they use them.
    The output is ``B N D`` as the target's layout says, or images ``B 3 H W`` in [0, 1] where the target is the image.

    Attributes:
        learning_rate: Adam's, as in most of the authors' scripts (the paper names none).
        trainable: False for an inverse that is computed, not learned.
    """

    learning_rate: ClassVar[float] = 1e-3
    trainable: ClassVar[bool] = True

    def __init__(self, source: Layout, target: Layout, constants: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.source, self.target = source, target
        del constants  # most inverses need none

    @staticmethod
    def constant(constants: Mapping[str, Tensor] | None, name: str, shape: tuple[int, ...]) -> Tensor:
        """A static tensor of the forward model; zeros of ``shape`` (for a state_dict to fill) where there is no model.

        Raises:
            ValueError: the forward model has no such tensor.
        """
        if constants is None:
            return torch.zeros(shape)
        if name not in constants:
            raise ValueError(f"it needs the forward model's '{name}', which this model does not have")
        return constants[name].detach().float().cpu().clone()

    def expect_same(self, *names: str) -> None:
        """Refuse a source and a target whose layouts differ in one of the fields ``names``.

        Raises:
            ValueError: they do.
        """
        for name in names:
            own, other = getattr(self.source, name), getattr(self.target, name)
            if own != other:
                raise ValueError(f"it keeps the {name}, but its source has {own} and its target {other}")

    def expect_no_prefix(self, *, in_target: bool = False) -> None:
        """Refuse layouts with prefix tokens, for inverses that place every token on the grid.

        Raises:
            ValueError: there are some, other than in a target that may have them (``in_target``).
        """
        if self.source.prefix or (self.target.prefix and not in_target):
            raise ValueError("it has no place for tokens before the grid, such as a class token")

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Features of the source stage, ``B N D`` -> features of the target stage or images."""

    def as_map(self, features: Tensor) -> Tensor:
        """``B N D`` without its prefix tokens -> ``B D h w``."""
        h, w = self.source.grid
        return rearrange(features[:, self.source.prefix :], "b (h w) d -> b d h w", h=h, w=w)

    def crop(self, images: Tensor) -> Tensor:
        """Cut what a rounded-up grid adds to the right and at the bottom: ``B 3 H' W'`` -> ``B 3 H W``."""
        height, width = self.target.grid
        return images[..., :height, :width]

    def stride(self) -> int:
        """Pixels of the image for one step of the source's grid.

        Raises:
            ValueError: the target is no image.
        """
        if not self.target.image:
            raise ValueError(f"{type(self).__name__} reconstructs images, not {self.target}")
        return times_finer(self.target.grid, self.source.grid)


def expect_heads(width: int, heads: int) -> None:
    """Refuse a number of attention heads that do not share the width evenly.

    Raises:
        ValueError: they do not.
    """
    if heads < 1 or width % heads:
        raise ValueError(f"the width {width} is not divisible by {heads} heads: take a number that divides it")


def times_finer(fine: tuple[int, int], coarse: tuple[int, int]) -> int:
    """How many steps of the grid ``fine`` (h, w) are one step of the grid ``coarse``."""
    (height, width), (h, w) = fine, coarse
    if height * w == width * h and height % h == 0:
        return height // h
    # The grid was rounded up: by strides of two, the only ones that libraries round up.
    return 1 << (max(-(-height // h), -(-width // w)) - 1).bit_length()

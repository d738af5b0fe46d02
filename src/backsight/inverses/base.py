"""What every inverse is: a network from the features of one stage to those of the stage before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from backsight.core import Layout
from backsight.devices import exact


class Inverse(nn.Module, ABC):
    """One inverse component, ``x_b -> x_{b-1}`` (paper, eq. 1).

    It receives features and, when built, the static layouts of its ``source`` and ``target``; never a tensor of the
    forward pass. The few that use static tensors of the forward model take them as ``constants``.
    The output is ``B N D`` as the target's layout says, or images ``B 3 H W`` in [0, 1] where the target is the image.

    Attributes:
        learning_rate: Adam's, as in most of the authors' scripts (the paper names none).
        trainable: False for an inverse that is computed, not learned.
        muon: whether its matrices are Muon's in the fast recipe, or Adam's like all else.
        samples: whether it gives draws of its target as well as their mean, see :class:`~backsight.inverses.Flow`; its
            loss is its own, what it gives when called with features and target.
    """

    learning_rate: ClassVar[float] = 1e-3
    trainable: ClassVar[bool] = True
    muon: ClassVar[bool] = True
    samples: ClassVar[bool] = False

    def __init__(self, source: Layout, target: Layout) -> None:
        super().__init__()
        self.source: Layout = source
        self.target: Layout = target

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
        """Refuse a source and a target whose layouts differ in one of the fields ``names`` (``ValueError``)."""
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

    @property
    def last(self) -> nn.Module | None:
        """The layer that gives the output, if it is a LayerNorm, or a linear layer behind one."""
        return None

    def moments(self) -> Moments | None:
        """What has to be known of true features before it begins (:meth:`begin`); None: nothing."""
        return None if self.last is None else Moments()

    @torch.no_grad()
    def begin(self, moments: Moments) -> None:
        """Let the output begin with the mean and the spread of what it has to be, by ``moments`` of true features."""
        match self.last:
            case nn.LayerNorm() as norm:
                norm.weight.copy_(moments.target.std)
                norm.bias.copy_(moments.target.mean)
            case nn.Linear() as linear:  # torch draws its weights with a variance of 1 / (3 D)
                linear.weight.mul_(3**0.5 * moments.target.std[:, None])
                linear.bias.copy_(moments.target.mean)
            case _:
                pass

    def known(self, features: Tensor) -> Tensor:
        """``B N D`` as they are; of predictions, logits and boxes, the class distribution and the boxes."""
        if not self.source.classes:
            return features
        logits, boxes = features.split([self.source.classes, 4], -1)
        return torch.cat([self.classes(logits), boxes], -1)

    def classes(self, logits: Tensor) -> Tensor:
        """Logits ``B Q C`` -> the class distribution that the inverse reads: what the source says they mean."""
        return logits.sigmoid() if self.source.scores == "sigmoid" else logits.softmax(-1)

    def as_map(self, features: Tensor) -> Tensor:
        """``B N D`` without its prefix tokens -> ``B D h w``."""
        h, w = self.source.grid
        return rearrange(features[:, self.source.prefix :], "b (h w) d -> b d h w", h=h, w=w)

    def as_maps(self, features: Tensor) -> list[Tensor]:
        """``B N D`` -> a map ``B D h w`` for each of the source's grids."""
        parts = features[:, self.source.prefix :].split([h * w for h, w in self.source.grids], 1)
        return [
            rearrange(part, "b (h w) d -> b d h w", h=h, w=w)
            for part, (h, w) in zip(parts, self.source.grids, strict=True)
        ]

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


class Spread:
    """The mean and the standard deviation of every channel, added up in float64."""

    def __init__(self) -> None:
        nothing = torch.zeros((), dtype=torch.float64)
        self.count: Tensor = nothing
        self.total: Tensor = nothing
        self.squares: Tensor = nothing

    def add(self, values: Tensor) -> None:
        """Add ``B N D``, or images ``B 3 H W``."""
        rows = exact(values.flatten(2).transpose(1, 2) if values.dim() == 4 else values).flatten(0, 1)
        self.count = self.count + rows.new_full((), len(rows))
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)

    @property
    def mean(self) -> Tensor:
        """``D``."""
        return (self.total / self.count).float()

    @property
    def std(self) -> Tensor:
        """``D``."""
        return (self.squares / self.count - (self.total / self.count).square()).clamp(min=0).sqrt().float()


class Moments:
    """What is known of true features before an inverse begins: here the spread of what it reads and is to give.

    Args:
        images: how many are to be seen.
        reads: what it makes of features before its first layer.
    """

    def __init__(self, images: int = 16, reads: Callable[[Tensor], Tensor] = torch.Tensor.detach) -> None:
        self.images: int = images
        self.reads: Callable[[Tensor], Tensor] = reads
        self.source: Spread = Spread()
        self.target: Spread = Spread()

    def add(self, features: Tensor, target: Tensor, counted: Tensor | None = None) -> None:
        """Add a batch: features ``B N D``, what they are to become (``B N' D'`` or images ``B 3 H W``), and which
        tokens of the source count (``B N`` bool; None: all)."""
        del counted
        self.source.add(self.reads(features))
        self.target.add(target)

    def tensors(self) -> Iterable[Tensor]:
        """All sums, to be added up over processes in their places."""
        return [total for each in (self.source, self.target) for total in (each.count, each.total, each.squares)]


def expect_heads(width: int, heads: int) -> None:
    """Refuse a number of attention heads that do not share the width evenly (``ValueError``)."""
    if heads < 1 or width % heads:
        raise ValueError(f"the width {width} is not divisible by {heads} heads: take a number that divides it")


def times_finer(fine: tuple[int, int], coarse: tuple[int, int]) -> int:
    """How many steps of the grid ``fine`` (h, w) are one step of the grid ``coarse``."""
    (height, width), (h, w) = fine, coarse
    if height * w == width * h and height % h == 0:
        return height // h
    # The grid was rounded up: by strides of two, the only ones that libraries round up.
    return 1 << (max(-(-height // h), -(-width // w)) - 1).bit_length()

"""Linear inverses in closed form: one pass over true features, then the solution of a linear system."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from backsight.core import Layout, UserError
from backsight.devices import exact
from backsight.inverses.base import Inverse, Moments, times_finer
from backsight.validation import Number

IMAGES = 1000

PENALTIES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Those that are tried, in units of the mean variance of what is read."""

MOST_NEIGHBOURS, MOST_TOGETHER = 2_560, 8_192
"""Numbers that a linear system is solved for at the most: with eight neighbours by ``auto``, and whatever is asked for;
the larger one takes half a gigabyte."""


class Ridge(Inverse):
    """Ridge regression: the linear function of the source's features with the least squared error of the target.

    What is read, for every place of the source: ``token``, the token there; ``neighbours``, the 3 x 3 tokens around it;
    ``all``, every token of the source, for a source without a grid. What is given: the token at the same place, or, of
    a finer target, the patch of its pixels or tokens there. Every place has an offset of its own, so that the position
    is nothing to be learned. The weights are shared by all places (but for ``all``).

    The penalty is that with the least error on the other half of the images than it was solved for, of
    :data:`PENALTIES`; then both halves are taken together. Images are cut to [0, 1].

    Args:
        reads: as above; ``auto`` takes what fits the layouts, ``neighbours`` where the system stays small.
        images: how many it is solved for; :data:`IMAGES` if not given.
    """

    trainable: ClassVar[bool] = False

    def __init__(
        self,
        source: Layout,
        target: Layout,
        *,
        reads: Literal["auto", "token", "neighbours", "all"] = "auto",
        images: Number | None = None,
    ) -> None:
        super().__init__(source, target)
        self.images: Number = images or IMAGES
        self.reads = reads if reads != "auto" else _fitting(source, target)
        self.finer = 1
        if self.reads == "all":
            places, inputs, outputs = 1, source.tokens * source.width, target.tokens * target.width
        else:
            self.finer: int = 1 if self._same_tokens else _times_finer(source, target, self.reads)
            places = source.tokens if self._same_tokens else source.grid[0] * source.grid[1]
            inputs = source.width * (9 if self.reads == "neighbours" else 1)
            outputs = self.finer**2 * target.width
        if inputs > MOST_TOGETHER:
            raise ValueError(f"it would read {inputs:,} numbers at once, and takes {MOST_TOGETHER:,} at the most")
        self.weight: Tensor
        self.offset: Tensor
        self.register_buffer("weight", torch.zeros(inputs, outputs))
        self.register_buffer("offset", torch.zeros(places, outputs))

    @property
    def _same_tokens(self) -> bool:
        """Whether every token, prefix included, is read by itself and gives one of the target."""
        return self.reads == "token" and not self.target.image and self.source.tokens == self.target.tokens

    def forward(self, features: Tensor) -> Tensor:
        """``B N D`` -> ``B N' D'``, or ``B 3 H W`` in [0, 1]."""
        rows = self.rows(features) @ self.weight + self.offset
        if self.reads == "all":
            rows = rows.unflatten(-1, (self.target.tokens, self.target.width))[:, 0]
            return rows.mT.unflatten(-1, self.target.grid).clamp(0, 1) if self.target.image else rows
        if self._same_tokens:
            return rows
        h, w = self.source.grid
        parts = {"h": h, "w": w, "p": self.finer, "q": self.finer}
        if self.target.image:
            return self.crop(rearrange(rows, "b (h w) (c p q) -> b c (h p) (w q)", **parts)).clamp(0, 1)
        height, width = self.target.grid
        maps = rearrange(rows, "b (h w) (c p q) -> b (h p) (w q) c", **parts)[:, :height, :width]
        return maps.flatten(1, 2)

    def rows(self, features: Tensor) -> Tensor:
        """What is read at every place: ``B N D`` -> ``B places inputs``."""
        features = self.known(features)
        if self.reads == "all":
            return features.flatten(1)[:, None]
        if self._same_tokens:
            return features
        maps = self.as_map(features)
        if self.reads == "token":
            return rearrange(maps, "b d h w -> b (h w) d")
        return nn.functional.unfold(maps, 3, padding=1).transpose(1, 2)

    def wanted(self, target: Tensor) -> Tensor:
        """What is to be given at every place: ``B N' D'`` or ``B 3 H W`` -> ``B places outputs``."""
        if self.reads == "all":
            return (rearrange(target, "b c h w -> b (h w) c") if self.target.image else target).flatten(1)[:, None]
        if self._same_tokens:
            return target
        (h, w), (height, width) = self.source.grid, self.target.grid
        maps = target if self.target.image else rearrange(target, "b (h w) d -> b d h w", h=height, w=width)
        beyond = (0, w * self.finer - width, 0, h * self.finer - height)  # of a grid that was rounded up
        maps = nn.functional.pad(maps, beyond, mode="replicate") if any(beyond) else maps
        return rearrange(maps, "b c (h p) (w q) -> b (h w) (c p q)", p=self.finer, q=self.finer)

    @property
    def whole(self) -> Tensor:
        """The places that the weights are solved for, as bool: of a grid that was rounded up, not the last row or
        column, whose patches are cut. Their offsets are known all the same."""
        whole = torch.ones(len(self.offset), dtype=torch.bool, device=self.offset.device)
        if self.finer > 1:
            (h, w), (height, width) = self.source.grid, self.target.grid
            whole = whole.view(h, w)
            whole[height // self.finer :], whole[:, width // self.finer :] = False, False
            whole = whole.flatten() if whole.any() else torch.ones_like(whole).flatten()
        return whole

    def under(self, counted: Tensor | None) -> Tensor | None:
        """Which places count, of the source's tokens (``B N`` bool) that do."""
        if counted is None or self.reads == "all":
            return None
        return counted if self._same_tokens else counted[:, self.source.prefix :]

    def moments(self) -> Moments:
        """The products of what is read with itself and with what is to be given."""
        return RidgeMoments(self)

    def begin(self, moments: Moments) -> None:
        """Take the solution of the linear system."""
        assert isinstance(moments, RidgeMoments)
        weight, offset = moments.solve()
        self.weight.copy_(weight)
        self.offset.copy_(offset)


def _fitting(source: Layout, target: Layout) -> Literal["token", "neighbours", "all"]:
    """What is read by ``auto``."""
    if not target.image and source.tokens == target.tokens:
        small = 9 * source.width <= MOST_NEIGHBOURS
        return "neighbours" if small and source.grids == target.grids and _placed(source, target) else "token"
    if _placed(source, target):
        return "neighbours" if 9 * source.width <= MOST_NEIGHBOURS else "token"
    return "all"


def _placed(source: Layout, target: Layout) -> bool:
    """Whether both have one grid, and the target nothing beside it."""
    return len(source.grids) == len(target.grids) == 1 and not target.prefix


def _times_finer(source: Layout, target: Layout, reads: str) -> int:
    if not _placed(source, target):
        raise ValueError(f"by {reads} it leads from one grid to another, not from {source} to {target}")
    finer = times_finer(target.grid, source.grid)
    if any(own * finer < wanted for own, wanted in zip(source.grid, target.grid, strict=True)):
        raise ValueError(f"it goes to finer grids, and the target's {target.grid} is no multiple of {source.grid}")
    return finer


class RidgeMoments(Moments):
    """Sums over images, in two halves (every other batch), that a ridge regression is solved from. All in float64:
    features may have a mean that is large beside their spread."""

    def __init__(self, inverse: Ridge) -> None:
        super().__init__(inverse.images)
        self.inverse: Ridge = inverse
        self.batches: int = 0
        self.whole: Tensor = inverse.whole
        (inputs, outputs), places = inverse.weight.shape, len(inverse.offset)
        shapes = {"n": (places,), "x": (places, inputs), "y": (places, outputs)}
        shapes |= {"xx": (inputs, inputs), "xy": (inputs, outputs)}
        zeros = inverse.weight.new_zeros
        self.halves: list[dict[str, Tensor]] = [
            {name: exact(zeros(shape)) for name, shape in shapes.items()} for _ in range(2)
        ]

    def add(self, features: Tensor, target: Tensor, counted: Tensor | None = None) -> None:
        """Add a batch, of whose tokens those that are ``counted``."""
        x, y = exact(self.inverse.rows(features)), exact(self.inverse.wanted(target))
        under = self.inverse.under(counted)
        share = x.new_ones(x.shape[:2]) if under is None else under.to(x)
        sums = {"n": share.sum(0), "x": (share[..., None] * x).sum(0), "y": (share[..., None] * y).sum(0)}
        share, x, y = share[:, self.whole].flatten(), x[:, self.whole].flatten(0, 1), y[:, self.whole].flatten(0, 1)
        weighted = share[:, None] * x
        sums |= {"xx": weighted.T @ x, "xy": weighted.T @ y}
        for name, total in self.halves[self.batches % 2].items():
            total += sums[name]
        self.batches += 1

    def tensors(self) -> Iterable[Tensor]:
        """All sums, to be added up over processes."""
        return [total for half in self.halves for total in half.values()]

    def solve(self) -> tuple[Tensor, Tensor]:
        """The weights ``inputs outputs`` and the offsets ``places outputs`` with the least squared error.

        Raises:
            UserError: no image was seen.
        """
        penalty = self._penalty()
        both = {name: self.halves[0][name] + self.halves[1][name] for name in self.halves[0]}
        if not both["n"].sum():
            raise UserError("none of the training images can be read")
        products, crossed, _ = _centred(both, self.whole)
        products.diagonal().add_(penalty * _unit(products))
        weight = torch.linalg.solve(products, crossed)
        count = both["n"].clamp(min=1)[:, None]
        return weight, (both["y"] - both["x"] @ weight) / count

    def _penalty(self) -> float:
        """The one of :data:`PENALTIES` with which the first half gives the second with the least error."""
        first, second = (_centred(half, self.whole) for half in self.halves)
        return _best_penalty(*first[:2], *second[:2]) if first[2] and second[2] else 1e-3


def _centred(sums: Mapping[str, Tensor], whole: Tensor) -> tuple[Tensor, Tensor, float]:
    """The products of deviations from the mean of every place, and how many places were seen."""
    n, x, y = (sums[name][whole] for name in ("n", "x", "y"))
    mean = x / n.clamp(min=1)[:, None]
    return sums["xx"] - mean.T @ x, sums["xy"] - mean.T @ y, n.sum().item()


def _best_penalty(products: Tensor, crossed: Tensor, other_products: Tensor, other_crossed: Tensor) -> float:
    """The one of :data:`PENALTIES` whose weights W have the least squared error on the other half.

    ||y - W x||^2 is, but for what does not depend on W, a quadratic form in the shrinkage of every eigenvector of the
    first half, so that all penalties together cost little more than one.
    """
    values, vectors = torch.linalg.eigh(products)
    turned = vectors.T @ crossed
    squares = (turned @ turned.T) * (vectors.T @ other_products @ vectors)
    linear = (turned * (vectors.T @ other_crossed)).sum(1)

    def error(penalty: float) -> float:
        shrunk = 1 / (values.clamp(min=0) + penalty * _unit(products))
        return (shrunk @ squares @ shrunk - 2 * shrunk @ linear).item()

    return min(PENALTIES, key=error)


def _unit(products: Tensor) -> Tensor:
    """The mean variance of what is read."""
    return products.diagonal().mean().clamp(min=1e-30)

"""How sure a mean is: intervals over images and seeds, of means, ratios and shares; several claims at once.

Values are ``seeds images``, or ``images`` where there is one seed. Each kind of interval is held to its 95 % by
simulation (``docs/claims.md`` has the table).

=====================  =========================================================================================
of a mean              t, with the error and the degrees of freedom of a table whose rows and columns are both random
                       (:func:`estimate`); over the images alone of one seed, over the seeds alone of one column
of a ratio             the same, of what its means scatter by (:func:`ratio`)
of a share             Wilson's, of values that are 0 or 1 (:func:`interval`)
of a difference        t with the degrees of freedom of Welch and Satterthwaite, where the two are not paired
of two shares, paired  of Bonett and Price (2012), who add an image to either side (:func:`estimate_share_difference`)
=====================  =========================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

CONFIDENCE = 0.95
"""The share of such intervals that should hold the true value."""


class Interval(NamedTuple):
    """A mean and its 95 % interval, all in the unit of the values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """What is known of an effect: its ``mean``, the ``error`` of that (a standard deviation; NaN where it is not
    known), the ``freedom`` (degrees, infinite for a normal law), and the ``centre`` of its interval, if that is
    another."""

    mean: float
    error: float
    freedom: float
    centre: float = math.nan

    @property
    def middle(self) -> float:
        """The centre of the interval."""
        return self.mean if math.isnan(self.centre) else self.centre

    @property
    def half(self) -> float:
        """Half of the width of the 95 % interval; NaN where the error is not known."""
        return quantile(self.freedom) * self.error if self.error else 0.0

    def interval(self) -> Interval:
        """The 95 % interval about the centre."""
        return Interval(self.mean, self.middle - self.half, self.middle + self.half)

    def chance_below(self, bound: float) -> float:
        """The p-value of the hypothesis that the effect is ``bound`` or more, against less: small if it is below."""
        if math.isinf(bound):
            return 0.0 if bound > 0 else 1.0
        if not self.error:
            return 0.0 if self.middle < bound else 1.0
        place = (self.middle - bound) / self.error
        from scipy.special import ndtr, stdtr

        return float(ndtr(place) if math.isinf(self.freedom) else stdtr(self.freedom, place))

    def chance_above(self, bound: float) -> float:
        """The p-value of the hypothesis that the effect is ``bound`` or less, against more."""
        return Estimate(-self.mean, self.error, self.freedom, -self.middle).chance_below(-bound)


@lru_cache(maxsize=4096)
def quantile(freedom: float) -> float:
    """How many errors the 95 % interval of a t law reaches to either side.

    >>> round(quantile(2), 3), round(quantile(math.inf), 3)
    (4.303, 1.96)
    """
    from scipy.special import ndtri, stdtrit

    return float(ndtri((1 + CONFIDENCE) / 2) if math.isinf(freedom) else stdtrit(freedom, (1 + CONFIDENCE) / 2))


def estimate(values: Tensor) -> Estimate:
    """The mean of ``values`` for new images and new seeds.

    Rows (seeds) and columns (images) are both drawn at random, each value is their sum and a rest: with the mean
    squares of a two-way table the variance of the mean is ``(MS_seeds + MS_images - MS_rest) / (seeds images)``, and
    its degrees of freedom are nearly Satterthwaite's (1946). A mean square below that of the rest counts as the
    rest's: no part of the variance is negative. With one seed it is the plain t interval over images, and says nothing
    of other seeds; with one column that over seeds. Of a single value the error is not known.

    Args:
        values: ``seeds images``, or ``images``; finite, at least one.

    Raises:
        ValueError: no values, a value that is not finite, or more than two dimensions.
    """
    table = _checked(values)
    mean = float(table[0, 0] + (table - table[0, 0]).mean())  # constant values give exactly themselves
    return Estimate(mean, *_error(table))


def _error(table: Tensor) -> tuple[float, float]:
    """(standard error of the mean, degrees of freedom) of ``seeds images``."""
    rows, columns = table.shape
    centred = table - table[0, 0]
    centred = centred - centred.mean()
    if min(rows, columns) == 1:
        count = max(rows, columns)
        return (math.nan, math.nan) if count == 1 else (float(centred.std(correction=1)) / count**0.5, count - 1)
    by_row, by_column = centred.mean(1), centred.mean(0)
    rest = centred - by_row[:, None] - by_column
    free = (rows - 1, columns - 1, (rows - 1) * (columns - 1))
    squares = [float(columns * by_row.square().sum()) / free[0], float(rows * by_column.square().sum()) / free[1]]
    left = float(rest.square().sum()) / free[2]
    seeds, images = (max(each, left) for each in squares)
    error = ((seeds + images - left) / (rows * columns)) ** 0.5
    # A mean square of few degrees that happens to be small would raise their number, and pass for sure: it counts as
    # (f + 2) / f of itself, as the mean of its square does.
    squares = [each * (count + 2) / count for each, count in zip((seeds, images), free, strict=False)]
    parts = sum(each**2 / count for each, count in zip(squares, free, strict=False))
    return error, sum(squares) ** 2 / parts if parts > 0 else float(free[0])


def ratio(values: Tensor, units: Tensor) -> Tensor:
    """The mean of ``values`` over that of ``units``, as a table whose mean it is and whose scatter is its own.

    The ratio ``R`` of two means is off by the mean of ``(values - R units) / mean(units)``, to first order: so
    :func:`estimate` of ``R`` plus this gives the interval of the ratio. Of equal values it is 1 for sure. An image
    where either is not known is NaN, and does not count.

    >>> ratio(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 6.0]])).tolist()
    [[0.5, 0.5]]

    Args:
        values: ``seeds images``.
        units: ``seeds images``, or one row for all seeds.

    Returns:
        ``seeds images``, float64.
    """
    top, bottom = values.double(), units.double()
    known = (top.isfinite() & bottom.isfinite()).all(0)
    scale = bottom[:, known].mean().clamp(min=1e-12)
    found = top[:, known].mean() / scale
    return torch.where(known, found + (top - found * bottom) / scale, math.nan)


def estimate_share_difference(differences: Tensor) -> Estimate:
    """The mean difference of two shares of the same images: of values in [-1, 1], most of them 0 perhaps.

    One image on either side is added to those that there are (Bonett and Price, 2012): so that no difference at all, of
    few images, does not mean that there is none for sure. Several seeds count as one, their mean.

    Args:
        differences: ``seeds images``, or ``images``, in [-1, 1].
    """
    images = _checked(differences).mean(0)
    added = torch.cat([images, images.new_tensor([-1.0, 1.0])])
    error = float(added.std(correction=0)) / len(added) ** 0.5
    return Estimate(float(images.mean()), error, math.inf, float(added.mean()))


def difference(one: Estimate, other: Estimate) -> Estimate:
    """``one`` minus ``other``, which are independent: of other images, other seeds (Welch, 1947)."""
    variances = one.error**2, other.error**2
    error = sum(variances) ** 0.5
    parts = sum(v**2 / each.freedom for v, each in zip(variances, (one, other), strict=True) if v > 0)
    freedom = sum(variances) ** 2 / parts if parts > 0 else min(one.freedom, other.freedom)
    return Estimate(one.mean - other.mean, error, freedom, one.middle - other.middle)


def interval(values: Tensor, *, share: bool = False) -> Interval:
    """The mean with its 95 % interval: of a ``share`` (values of 0 and 1, of one seed or the same of all) Wilson's,
    else that of :func:`estimate`."""
    table = _checked(values)
    binary = bool(((table == 0) | (table == 1)).all() and (table == table[0]).all())
    if not share or not binary or table.shape[1] == 1:
        return estimate(table).interval()
    from scipy.stats import binomtest

    found = binomtest(int(table[0].sum()), table.shape[1]).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(table[0].mean()), float(found.low), float(found.high))


def holm(chances: Sequence[float]) -> list[float]:
    """p-values of several claims -> what they come to together (Holm, 1979): below .05 the chance that any of those
    is wrong is below .05.

    >>> [round(each, 3) for each in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(chances)), key=lambda index: chances[index])
    adjusted, largest = [0.0] * len(chances), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[index]))
        adjusted[index] = largest
    return adjusted


def _checked(values: Tensor) -> Tensor:
    table = values.detach().cpu().double()
    table = table[None] if table.ndim == 1 else table
    if table.ndim != 2 or table.numel() == 0:
        raise ValueError(f"values of shape (seeds, images) or (images) were expected, not {tuple(values.shape)}")
    if not table.isfinite().all():
        raise ValueError("every value must be finite: leave out images without an answer before averaging")
    return table

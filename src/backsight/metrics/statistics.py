"""How sure a mean is: bootstrap intervals over images and seeds together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CONFIDENCE = 0.95
"""The share of such intervals that should hold the true mean."""

_DRAWS_AT_ONCE = 10_000_000
"""Random numbers drawn in one go: 50,000 images need no more than 80 MB."""


class Interval(NamedTuple):
    """A mean and its 95 % interval, all in the unit of the values."""

    mean: float
    low: float
    high: float


def bootstrap(values: Tensor, num: int = 2000, seed: int = 0) -> Interval:
    """The mean of ``values`` with its 95 % percentile interval, resampling images *and* seeds.

    Every draw picks as many seeds and as many images as there are, with replacement and independently, and
    averages the crossing of both (the pigeonhole bootstrap of Owen, 2007): the interval speaks of new images and of
    new seeds. For a paired comparison pass the differences. With very few seeds the spread between
    them is underestimated (with three, by about a fifth), as it is in any bootstrap.

    Args:
        values: ``seeds images``, or ``images`` where there is one seed; finite, at least one.
        num: How many draws.
        seed: Of the draws; the same seed gives the same interval.

    Returns:
        The mean of all values, and the 2.5 and 97.5 percentiles of the draws' means.

    Raises:
        ValueError: no values, a value that is not finite, or more than two dimensions.
    """
    table = _checked(values)
    # Measured from one of them: numbers far from zero lose no digits, constant ones give exactly no width.
    origin = table[0, 0]
    table = table - origin
    low, high = _bounds(_draws(table, num, seed))
    return Interval(*(float(origin + bound) for bound in (table.mean(), low, high)))


def bootstrap_difference(one: Tensor, other: Tensor, num: int = 2000, seed: int = 0) -> Interval:
    """The mean of ``one`` minus that of ``other``, of values that are not paired: of other images, other seeds.

    Each is resampled on its own as in :func:`bootstrap`; the arguments are those of it. Where the values are paired
    after all, their differences give a narrower interval.

    Raises:
        ValueError: as :func:`bootstrap`.
    """
    tables = [_checked(values) for values in (one, other)]
    origins = [table[0, 0] for table in tables]
    centred = [table - origin for table, origin in zip(tables, origins, strict=True)]
    draws = [_draws(table, num, seed + which) for which, table in enumerate(centred)]  # not the same draws for both
    origin, mean = (float(pair[0] - pair[1]) for pair in (origins, [table.mean() for table in centred]))
    low, high = _bounds(draws[0] - draws[1])
    return Interval(origin + mean, origin + low, origin + high)


def _draws(table: Tensor, num: int, seed: int) -> Tensor:
    """The means of ``num`` resampled tables ``seeds images``."""
    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, _DRAWS_AT_ONCE // table.shape[1])
    sizes = [min(chunk, num - start) for start in range(0, num, chunk)]
    return torch.cat([_draw_means(table, size, generator) for size in sizes])


def _bounds(draws: Tensor) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return low, high


def _checked(values: Tensor) -> Tensor:
    table = values.detach().cpu().double()
    table = table[None] if table.ndim == 1 else table
    if table.ndim != 2 or table.numel() == 0:
        raise ValueError(f"values of shape (seeds, images) or (images) were expected, not {tuple(values.shape)}")
    if not table.isfinite().all():
        raise ValueError("every value must be finite: leave out images without an answer before averaging")
    return table


def _draw_means(table: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """``seeds images`` -> the means of ``num`` resampled tables. How often each row and column
    was picked is all that matters, so a draw is two vectors of counts around the table."""
    seeds, images = (_counts(num, size, generator) for size in table.shape)
    return ((seeds @ table) * images).sum(1) / table.numel()


def _counts(num: int, size: int, generator: torch.Generator) -> Tensor:
    """How often each of ``size`` things comes up in ``size`` draws with replacement: ``num size``."""
    picks = torch.randint(size, (num, size), generator=generator)
    once = torch.ones((), dtype=torch.float64).expand_as(picks)
    return torch.zeros(num, size, dtype=torch.float64).scatter_add_(1, picks, once)

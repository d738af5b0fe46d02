"""A linear probe: what can be read from features without an inverse, by ridge regression."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backsight.devices import exact

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Tried on a fifth of the examples that the others do not hold; for standardised features, per example."""

FEWEST = 10
"""Examples that a probe is fitted to, at the least."""


@dataclass(frozen=True)
class Probe:
    """``targets = (features - centre) / scale @ weights + offset``; ``penalty`` is the one that was chosen."""

    centre: Tensor
    scale: Tensor
    weights: Tensor
    offset: Tensor
    penalty: float

    def __call__(self, features: Tensor) -> Tensor:
        """``n F`` -> ``n T``."""
        return ((exact(features) - self.centre) / self.scale) @ self.weights + self.offset


def fit_probe(features: Tensor, targets: Tensor, penalties: tuple[float, ...] = PENALTIES) -> Probe:
    """Ridge regression of ``targets`` ``n T`` on ``features`` ``n F``, the penalty chosen on every fifth example.

    Raises:
        ValueError: fewer than ten examples, or as many targets are not there.
    """
    if len(features) != len(targets) or len(features) < FEWEST:
        raise ValueError(f"ten examples at least were expected, with a target each: {len(features)}, {len(targets)}")
    held_out = torch.arange(len(features)) % 5 == 0
    errors = {
        penalty: _error(_solve(features[~held_out], targets[~held_out], penalty), features[held_out], targets[held_out])
        for penalty in penalties
    }
    return _solve(features, targets, min(errors, key=lambda penalty: errors[penalty]))


def _solve(features: Tensor, targets: Tensor, penalty: float) -> Probe:
    features, targets = exact(features), exact(targets)
    centre, offset = features.mean(0), targets.mean(0)
    scale = features.std(0, correction=0).clamp(min=1e-8)
    x, y = (features - centre) / scale, targets - offset
    # Through the smaller of the two Gram matrices: w = (x'x + l)^-1 x'y = x'(xx' + l)^-1 y.
    strength = penalty * len(x) * torch.eye(min(x.shape), dtype=x.dtype, device=x.device)
    if x.shape[1] <= len(x):
        weights = torch.linalg.solve(x.T @ x + strength, x.T @ y)
    else:
        weights = x.T @ torch.linalg.solve(x @ x.T + strength, y)
    return Probe(centre, scale, weights, offset, penalty)


def _error(probe: Probe, features: Tensor, targets: Tensor) -> float:
    return (probe(features) - exact(targets)).square().mean().item()

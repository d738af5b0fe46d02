"""How long a run goes on, and the learning rate on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass

WARM_UP = 20
"""Batches over which the learning rate rises to its full value."""
FLOOR = 0.01
"""The share of the learning rate that is left at the end."""


@dataclass(frozen=True)
class Budget:
    """The end of a run: after ``steps`` batches, or after ``minutes`` of training."""

    steps: int | None = None
    minutes: float | None = None

    @classmethod
    def of(cls, steps: int | None, epochs: float | None, minutes: float | None, steps_an_epoch: int) -> Budget:
        """The budget that a user's options mean, one of them at most; ten epochs where none is given."""
        if minutes is not None:
            return cls(minutes=minutes)
        return cls(steps=steps if steps is not None else math.ceil((epochs or 10) * steps_an_epoch))

    def share(self, step: int, seconds: float) -> float:
        """How much of the run is over after ``step`` batches and ``seconds`` of training, 0 to 1."""
        spent = step / self.steps if self.steps else seconds / (60 * (self.minutes or math.inf))
        return min(1.0, spent)

    def learning_rate(self, step: int, share: float) -> float:
        """The factor on every learning rate: a short linear warm-up, then a cosine down to 1 %."""
        warm_up = WARM_UP if self.steps is None else min(WARM_UP, self.steps // 10)
        rise = min(1.0, (step + 1) / (warm_up + 1))
        return rise * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * share)))

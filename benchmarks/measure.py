"""How things are timed here: sides that take turns, and the ratios between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

import torch

Side = Callable[[], object]
"""One of the things that are set against each other: a call does its work once. What it returns, if that is a number,
are the seconds of it that were spent waiting for images; a :class:`Spent` is what it took where it ran."""

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Spent:
    """What one turn of a side took, in seconds: of wall time, of the CPU time of this process, of ``waiting``."""

    wall: float
    cpu: float
    waiting: float = 0.0

    @property
    def working(self) -> float:
        """Wall time without the waiting."""
        return self.wall - self.waiting


@dataclass(frozen=True)
class Ratio:
    """One figure: a quotient of two things measured in the same run, with a value for every round.

    ``of`` says in words what is divided by what, ``amounts`` holds the medians of both in their own units, so that the
    ratio can be read; they are no figures of their own, since they are of this machine in this hour.
    """

    name: str
    values: Sequence[float]
    of: str
    better: Better = "higher"
    amounts: Mapping[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The middle value."""
        return median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return min(self.values), max(self.values)

    def as_json(self) -> dict[str, Any]:
        """In JSON's own types."""
        low, high = self.spread
        return {
            "name": self.name,
            "median": self.median,
            "low": low,
            "high": high,
            "rounds": len(self.values),
            "of": self.of,
            "better": self.better,
            "amounts": dict(self.amounts),
        }


def alternate(sides: Mapping[str, Side], rounds: int, device: torch.device | str = "cpu") -> dict[str, list[Spent]]:
    """Every side once to warm up, then ``rounds`` times one after the other, so that a slow hour slows them alike."""
    for side in sides.values():
        spend(side, device)
    found: dict[str, list[Spent]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(spend(side, device))
    return found


def seconds(
    sides: Mapping[str, Side], rounds: int, device: torch.device | str = "cpu", clock: Literal["wall", "cpu"] = "wall"
) -> dict[str, list[float]]:
    """:func:`alternate`, with the time by one clock alone."""
    return {name: [getattr(each, clock) for each in turns] for name, turns in alternate(sides, rounds, device).items()}


def spend(side: Side, device: torch.device | str = "cpu") -> Spent:
    """One turn, until the ``device`` has finished it."""
    synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    waited = side()
    if isinstance(waited, Spent):
        return waited
    synchronise(device)
    waiting = float(waited) if isinstance(waited, int | float) else 0.0
    return Spent(time.perf_counter() - wall, time.process_time() - cpu, waiting)


def synchronise(device: torch.device | str) -> None:
    """Wait for a GPU; a CPU has always finished."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def quotients(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round, the first divided by the second."""
    return [one / max(other, 1e-12) for one, other in zip(above, below, strict=True)]

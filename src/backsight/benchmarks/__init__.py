"""Speed and memory, each figure a ratio of two things that were measured in turns in the same run: ``backsight bench``.

A ratio says more than seconds do: it is nearly the same on a busy machine, and it tells what a change of the code did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backsight.benchmarks import alternatives, caching, decoding, limit, memory, passes, starting, studies, training
from backsight.benchmarks.compare import COMMITTED, difference, machine, read_ratios, regressions
from backsight.benchmarks.measure import Ratio, alternate
from backsight.benchmarks.settings import Settings
from backsight.core import UserError

BENCHMARKS: dict[str, Callable[[Settings], list[Ratio]]] = {
    "train": training.measure,
    "limit": limit.measure,
    "trace": passes.measure_trace,
    "reconstruct": passes.measure_reconstruct,
    "experiments": studies.measure,
    "data": decoding.measure,
    "start": starting.measure,
    "memory": memory.measure,
    "cache": caching.measure,
    "alternatives": alternatives.measure,
}
"""By name, in the order in which they are run."""


def choose(names: Sequence[str]) -> list[str]:
    """The benchmarks called ``names``, all of them where none is.

    Raises:
        UserError: there is none of that name.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise UserError(f"no benchmark '{name}': there are {', '.join(BENCHMARKS)}")
    return [name for name in BENCHMARKS if not names or name in names]


__all__ = [
    "BENCHMARKS",
    "COMMITTED",
    "Ratio",
    "Settings",
    "alternate",
    "choose",
    "difference",
    "machine",
    "read_ratios",
    "regressions",
]

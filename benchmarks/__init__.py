"""Speed and memory as ratios of two things that took turns in one run: ``python -m benchmarks``.

A ratio says more than seconds do: it is nearly the same on a busy machine, and it tells what a change of the code did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backsight.core import UserError
from benchmarks import caching, decoding, limit, memory, passes, starting, studies, training
from benchmarks.measure import Ratio
from benchmarks.settings import Settings

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

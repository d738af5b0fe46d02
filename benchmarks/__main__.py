"""``python -m benchmarks``: speed and memory, from the root of a checkout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from backsight.core import UserError
from backsight.io import write_json
from backsight.options import Precision, Size
from benchmarks import BENCHMARKS, choose
from benchmarks.compare import COMMITTED, difference, machine, read_ratios, regressions
from benchmarks.measure import Ratio
from benchmarks.settings import Settings


def bench(
    names: Positional[tuple[str, ...]] = (),
    models: tuple[str, ...] = (),
    rounds: int = 5,
    steps: int = 1,
    batch_size: int = 8,
    seeds: int = 3,
    size: Size = None,
    data: str | None = None,
    precision: Precision = "auto",
    device: str = "auto",
    json: Path | None = None,
    compare: tuple[Path, ...] | None = None,
) -> None:
    """Speed and memory, each figure a ratio of two things measured in turns in the same run.

    Args:
        names: train, limit, trace, reconstruct, experiments, data, start, memory, cache; all of
            them if none is named.
        models: What to measure on, with random weights unless it is one of the zoo; each benchmark has its own models
            if none is named.
        rounds: How often the sides take turns.
        steps: Batches of a turn of training.
        batch_size: Images in a batch.
        seeds: The larger number of instances of every inverse; the smaller one is 1.
        size: Image size in pixels other than the model's own, as 384x512.
        data: Pictures to train on, as for `backsight train`; made ones if not given.
        precision: bf16 autocast, or plain fp32; auto takes bf16 where the machine is quick at it.
        device: Where to compute: auto, cpu, cuda.
        json: Write the ratios to a file.
        compare: Name what is worse by more than 10 % than in a file that --json wrote; benchmarks/ratios.json
            if no file is given. Exit status 1 if anything is.
    """
    chosen = choose(names)
    settings = Settings(models, rounds, steps, batch_size, seeds, size, data, precision, device)
    before = None if compare is None else read_ratios(compare[0] if compare else COMMITTED)
    here, ratios = machine(settings), []
    print(", ".join(f"{name} {value}" for name, value in here.items()), flush=True)
    for name in chosen:
        found = BENCHMARKS[name](settings)
        _show(found)
        ratios += found
    if json is not None:
        write_json(json, {"machine": here, "ratios": [ratio.as_json() for ratio in ratios]})
    if before is not None:
        _tell(ratios, before, here)


def _show(ratios: Sequence[Ratio]) -> None:
    """Two lines for each: the ratio with its spread, and what it was made of."""
    for of, better in dict.fromkeys((ratio.of, ratio.better) for ratio in ratios):
        print(f"\n{of} ({better} is better)")
        for ratio in (each for each in ratios if (each.of, each.better) == (of, better)):
            low, high = ratio.spread
            amounts = ", ".join(f"{name} {value:.3g}" for name, value in ratio.amounts.items())
            print(f"  {ratio.name:<66} {ratio.median:6.3g}  ({low:.3g} to {high:.3g})\n      {amounts}", flush=True)


def _tell(ratios: Sequence[Ratio], before: dict[str, Any], here: dict[str, Any]) -> None:
    """What has become worse; exit status 1 if anything has."""
    if other := difference(here, before.get("machine", {})):
        print(other)
    worse = regressions(ratios, before)
    print("\n".join(worse) or "nothing is worse by more than 10 %")
    if worse:
        sys.exit(1)


if __name__ == "__main__":
    UserError.in_command = True
    try:
        tyro.cli(bench, prog="python -m benchmarks")
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)

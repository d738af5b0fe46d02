"""How fast the drawn world is drawn, on one thread: ``python benchmarks/world.py``.

Batches as training asks for them, pictures, masks, boxes and attributes included; the median of several rounds in
seconds of CPU, so that other work on the machine counts little.
"""

from __future__ import annotations

import json
import statistics
import time

import torch

from backsight.data.world import LAWS, World

ROUNDS, BATCHES, BATCH_SIZE = 7, 8, 64


def rate(world: World, first: int) -> float:
    """Images drawn in a second of CPU time."""
    started = time.process_time()
    for start in range(first, first + BATCHES * BATCH_SIZE, BATCH_SIZE):
        world.batch(range(start, start + BATCH_SIZE))
    return BATCHES * BATCH_SIZE / (time.process_time() - started)


def main() -> None:
    """Print the rates, a line for each kind of scene, then the same as JSON."""
    torch.set_num_threads(1)
    kinds = {f"{law}{', one object' * single}": World(law, single=single) for law in LAWS for single in (False, True)}
    rates = {}
    for name, world in kinds.items():
        rate(world, 0)  # tables of shapes and textures are made once
        rates[name] = [rate(world, round * BATCHES * BATCH_SIZE) for round in range(1, ROUNDS + 1)]
        found = rates[name]
        print(f"{name:26} {statistics.median(found):6.0f} images/s   {min(found):.0f} to {max(found):.0f}")
    print(json.dumps({"images_per_cpu_second": rates, "batch_size": BATCH_SIZE, "threads": 1}))


if __name__ == "__main__":
    main()

"""The most memory that training takes, over what it cannot do without: weights, gradients, optimiser state."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from backsight.devices import peak_memory
from benchmarks.measure import Ratio
from benchmarks.settings import TRUE_SIZE, Settings
from benchmarks.training import Steps, open_run, photos

NUM_STEPS = 2
"""Batches of a process: the first one allocates the optimisers' state, the second has all of it from the start."""

CHILD = "import json, sys; from benchmarks.memory import child; child(*json.loads(sys.argv[1]))"


def measure(settings: Settings) -> list[Ratio]:
    """One process for each model. It needs no rounds: the same steps take the same memory."""
    found = []
    for name in settings.chosen(TRUE_SIZE):
        call = json.dumps([name, asdict(settings)])
        done = subprocess.run([sys.executable, "-c", CHILD, call], check=True, stdout=subprocess.PIPE, text=True)
        used = json.loads(done.stdout.splitlines()[-1])
        found.append(
            Ratio(
                f"memory/{name}/1 seed",
                [used["peak"] / used["least"]],
                "peak beyond the imports, over weights, gradients and optimiser state, forward model included",
                "lower",
                {"peak GiB": used["peak"] / 2**30, "least GiB": used["least"] / 2**30, "images": settings.batch_size},
            )
        )
    return found


def child(name: str, options: dict) -> None:
    """Train for some batches, then print the bytes at the peak and the bytes that nothing can save."""
    settings = Settings(**options)
    before = peak_memory(settings.device)
    model = settings.open(name)
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(model, settings, settings.data or photos(model, settings, Path(folder)), Path(folder), seeds=1)
        Steps(run, NUM_STEPS)()
    weights = sum(each.numel() * each.element_size() for each in model.module.state_dict().values())
    learned = sum(each.numel() * each.element_size() for network in run.chains for each in network.parameters())
    print(json.dumps({"peak": peak_memory(settings.device) - before, "least": weights + 4 * learned}))

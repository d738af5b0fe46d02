"""From nothing to 64 reconstructed images: ``python benchmarks/look.py [zoo/NAME]``.

A new process each time; imports, loading of model and chains, drawing of the scenes and every stage are included, in
seconds of wall time on a machine that does nothing else.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

ROUNDS = 5
SCRIPT = """
import torch, backsight as bs
from backsight.data.world import open_world
model, chain = bs.load_model("{name}"), bs.InverseChain.from_pretrained("{name}")
with torch.no_grad():
    trace = model.run(open_world("{data}").test.batch(range(64)).images)
    assert all(chain.reconstruct(trace, stage).shape == (64, 3, 96, 96) for stage in chain.stages)
"""


def seconds(name: str) -> float:
    """One process from its start to its end."""
    law = name.rpartition("-")[2]
    data = f"world:{law}:single" if "vit" in name else f"world:{law}"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", SCRIPT.format(name=name, data=data)], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the time of each model, then the same as JSON."""
    times = {}
    for name in sys.argv[1:] or ["zoo/detr-prior", "zoo/vit-prior"]:
        times[name] = [seconds(name) for _ in range(ROUNDS)]
        print(f"{name:24} {statistics.median(times[name]):.2f} s   {min(times[name]):.2f} to {max(times[name]):.2f}")
    print(json.dumps({"seconds": times}))


if __name__ == "__main__":
    main()

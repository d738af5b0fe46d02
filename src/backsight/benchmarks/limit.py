"""How near training comes to what the machine can do: achieved FLOP/s over the rate of a bare matrix product."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backsight.benchmarks.measure import Ratio, Side, alternate
from backsight.benchmarks.settings import TRUE_SIZE, Settings
from backsight.benchmarks.training import open_run, photos
from backsight.core import split_entry
from backsight.data import Batch
from backsight.devices import autocast
from backsight.tasks import component_loss
from backsight.training import Run

SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices whose product is the measure, by device: large enough to be at full speed."""

PRODUCT, STEP, FORWARD = "matrix product", "whole step", "forward model"


def measure(settings: Settings) -> list[Ratio]:
    """The share of the matrix rate that the step reaches, and each part of it: the forward model, every inverse."""
    found: list[Ratio] = []
    for name in settings.chosen(TRUE_SIZE):
        with tempfile.TemporaryDirectory() as folder:
            found += _measure(name, settings, Path(folder))
    return found


def _measure(name: str, settings: Settings, folder: Path) -> list[Ratio]:
    model = settings.open(name)
    run = open_run(model, settings, settings.data or photos(model, settings, folder), folder / "run", seeds=1)
    batch = next(iter(run.epoch(0, 0)))
    parts = _parts(run, batch)
    work = {part: count_operations(side) for part, side in parts.items()}
    product, operations = matrix_product(settings)
    spent = alternate({PRODUCT: product, **parts}, settings.rounds, settings.device)
    rates = [operations / each.wall for each in spent[PRODUCT]]
    return [
        Ratio(
            f"limit/{name}/{part}",
            [work[part] / each.wall / rate for each, rate in zip(spent[part], rates, strict=True)],
            f"operations a second, over those of a {settings.dtype} matrix product".replace("torch.", ""),
            amounts={
                "GFLOP an image": work[part] / len(batch.ids) / 1e9,
                "ms an image": 1e3 * median(each.wall for each in spent[part]) / len(batch.ids),
                "matrix TFLOP/s": median(rates) / 1e12,
            },
        )
        for part in parts
    ]


def _parts(run: Run, batch: Batch) -> dict[str, Side]:
    """The whole step; the forward model; forward and backward pass of each inverse, without its update."""
    loop, model = run.loop(), run.model
    names = [*model.stages, *{model.spec.before(name) for name in model.stages}]
    features = {name: each.float() for name, each in model.features(batch.images, names).items()}

    def forward() -> None:
        with torch.no_grad(), autocast(run.precision, run.device):
            model.features(batch.images, names)

    def inverse(entry: str) -> Side:
        network, stage = run.chains[0].inverses[entry], split_entry(entry)[0]
        target = model.spec.before(stage)

        def pass_both_ways() -> None:
            with autocast(run.precision, run.device):
                loss: Tensor = component_loss(network(features[stage]).float(), features[target], target, model.pixels)
            loss.backward()
            network.zero_grad(set_to_none=True)

        return pass_both_ways

    inverses = {entry: inverse(entry) for entry, each in run.chains[0].items() if each.trainable}
    return {STEP: lambda: loop.step(batch), FORWARD: forward, **inverses}


def count_operations(side: Callable[[], object]) -> int:
    """The floating-point operations of a call: two for each multiplication and addition of its matrix products.

    Attention is counted as the products that it consists of, which only its plain form shows.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        side()
    return counter.get_total_flops()


def matrix_product(settings: Settings) -> tuple[Side, int]:
    """A call that multiplies square matrices for about a tenth of a second, and its number of operations."""
    size = SIDE.get(settings.device.type, 4096)
    one, other = (torch.randn(size, size, device=settings.device, dtype=settings.dtype) for _ in range(2))
    torch.mm(one, other)
    start = time.perf_counter()
    (one @ other)[0, 0].item()
    repeats = max(1, round(0.1 / (time.perf_counter() - start)))

    def multiply() -> None:
        for _ in range(repeats):
            torch.mm(one, other)

    return multiply, repeats * 2 * size**3


def matrix_rate(device: str = "auto") -> float:
    """Operations a second of the matrix product of this machine, in the precision that it trains in."""
    settings = Settings(device_name=device)
    product, operations = matrix_product(settings)
    return operations / median(each.wall for each in alternate({PRODUCT: product}, 5, settings.device)[PRODUCT])

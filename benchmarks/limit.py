"""How near training comes to what the machine can do: achieved FLOP/s over the rate of a bare matrix product."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from backsight.core import split_entry
from backsight.cost import count_operations, matrix_product
from backsight.data import Batch
from backsight.devices import autocast
from backsight.tasks import component_loss
from backsight.training import Run
from benchmarks.measure import Ratio, Side, alternate
from benchmarks.settings import TRUE_SIZE, Settings
from benchmarks.training import open_run, photos

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
    product, operations = matrix_product(settings.device, settings.dtype)
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

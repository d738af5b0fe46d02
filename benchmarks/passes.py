"""What it costs to look into a forward pass, to enter it again, and to reconstruct: in units of the bare pass."""

from __future__ import annotations

from functools import partial
from statistics import median

import torch
from torch import Tensor

from backsight.devices import autocast, choose_precision
from backsight.engine import StagedModel
from backsight.tasks import build_chains, make_plans
from benchmarks.measure import Ratio, Side, quotients, seconds
from benchmarks.settings import TRUE_SIZE, Settings

BARE = "bare forward"


def measure_trace(settings: Settings) -> list[Ratio]:
    """Capture (of everything, and of the stages alone) and re-entry at every stage, over the library's own forward."""
    found: list[Ratio] = []
    for name in settings.chosen(TRUE_SIZE):
        model = settings.open(name)
        images = _images(model, settings.batch_size)
        trace = model.run(images)
        sides: dict[str, Side] = {
            "run": partial(model.run, images),
            "features of all stages": partial(model.features, images, model.stages),
            **{f"resume at {stage}": partial(model.resume, stage, trace[stage], trace) for stage in model.stages},
        }
        found += _over_bare(f"trace/{name}", sides, model, images, settings)
    return found


def measure_reconstruct(settings: Settings) -> list[Ratio]:
    """A chain's reconstruction of an image from every stage, over the library's own forward."""
    found: list[Ratio] = []
    for name in settings.chosen(TRUE_SIZE):
        model = settings.open(name)
        images = _images(model, settings.batch_size)[:1]
        chain = build_chains(model, make_plans(model), [0])[0].to(model.device).eval()
        trace = model.run(images)
        sides: dict[str, Side] = {f"from {stage}": partial(chain.reconstruct, trace, stage) for stage in chain.stages}
        found += _over_bare(f"reconstruct/{name}", sides, model, images, settings)
    return found


def _images(model: StagedModel, count: int) -> Tensor:
    """``B 3 H W``: the same numbers each time."""
    return torch.rand(count, 3, *model.pixels.size, generator=torch.Generator().manual_seed(0)).to(model.device)


def _over_bare(
    name: str, sides: dict[str, Side], model: StagedModel, images: Tensor, settings: Settings
) -> list[Ratio]:
    device = settings.device

    def bare() -> object:
        return model.module(model.pixels.normalise(images), **model.arguments)

    with torch.no_grad(), autocast(choose_precision(settings.precision, device), device):
        spent = seconds({BARE: bare, **sides}, settings.rounds, device)
    return [
        Ratio(
            f"{name}/{side}",
            quotients(spent[side], spent[BARE]),
            "seconds, over those of the library's own forward pass",
            "lower",
            {"images/s": len(images) / median(spent[side]), "forward images/s": len(images) / median(spent[BARE])},
        )
        for side in sides
    ]

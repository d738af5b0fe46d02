"""What it costs to look into a forward pass, to enter it again, and to reconstruct: in units of the bare pass."""

from __future__ import annotations

from statistics import median

import torch
from torch import Tensor

from backsight.chain import InverseChain
from backsight.devices import autocast, choose_precision
from backsight.engine import StagedModel, Trace
from backsight.tasks import build_chains, make_plans
from benchmarks.measure import Better, Ratio, Side, Spent, alternate, quotients
from benchmarks.settings import TRUE_SIZE, Settings

BARE = "bare forward"


def measure_trace(settings: Settings) -> list[Ratio]:
    """Capture (of everything, and of the stages alone) and re-entry at every stage, over the library's own forward."""
    found: list[Ratio] = []
    for name in settings.chosen(TRUE_SIZE):
        model = settings.open(name)
        images = _images(model, settings)
        trace = model.run(images)
        sides: dict[str, Side] = {
            BARE: _bare(model, images),
            "run": lambda model=model, images=images: model.run(images),
            "features of all stages": lambda model=model, images=images: model.features(images, model.stages),
        }
        for stage in model.stages:
            sides[f"resume at {stage}"] = _resume(model, stage, trace)
        spent = _alternate(sides, settings)
        found += [_over_bare(f"trace/{name}/{side}", spent, side, len(images)) for side in sides if side != BARE]
    return found


def measure_reconstruct(settings: Settings) -> list[Ratio]:
    """A chain's reconstruction of an image from every stage, over the library's own forward."""
    found: list[Ratio] = []
    for name in settings.chosen(TRUE_SIZE):
        model = settings.open(name)
        images = _images(model, settings)[:1]
        chain = build_chains(model, make_plans(model), [0])[0].to(model.device).eval()
        trace = model.run(images)
        sides = {BARE: _bare(model, images)}
        for stage in chain.stages:
            sides[f"from {stage}"] = _reconstruct(chain, trace, stage)
        spent = _alternate(sides, settings)
        found += [_over_bare(f"reconstruct/{name}/{side}", spent, side, len(images)) for side in sides if side != BARE]
    return found


def _images(model: StagedModel, settings: Settings) -> Tensor:
    """``B 3 H W``: the same numbers each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(settings.batch_size, 3, *model.pixels.size, generator=generator).to(model.device)


def _bare(model: StagedModel, images: Tensor) -> Side:
    return lambda: model.module(model.pixels.normalise(images), **model.arguments)


def _resume(model: StagedModel, stage: str, trace: Trace) -> Side:
    return lambda: model.resume(stage, trace[stage], trace)


def _reconstruct(chain: InverseChain, trace: Trace, stage: str) -> Side:
    return lambda: chain.reconstruct(trace, stage)


def _alternate(sides: dict[str, Side], settings: Settings) -> dict[str, list[Spent]]:
    device = settings.device
    with torch.no_grad(), autocast(choose_precision(settings.precision, device), device):
        return alternate(sides, settings.rounds, device)


def _over_bare(name: str, spent: dict[str, list[Spent]], side: str, images: int) -> Ratio:
    better: Better = "lower"
    own, bare = ([each.wall for each in spent[which]] for which in (side, BARE))
    return Ratio(
        name,
        quotients(own, bare),
        "seconds, over those of the library's own forward pass",
        better,
        {"images/s": images / median(own), "forward images/s": images / median(bare)},
    )

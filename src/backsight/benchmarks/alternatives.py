"""Other ways to compute the parts of a step: what was taken, over what it replaced, and what was left, over what is."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

from backsight.benchmarks.measure import Ratio, Side, alternate, quotients
from backsight.benchmarks.settings import Settings
from backsight.benchmarks.subpixel import subpixel
from backsight.training.updates import Updates

COARSE, FINE = (1024, 512, 30, 40), (128, 64, 240, 320)
"""Channels in and out, rows and columns: two of the layers of DETR's backbone inverse."""

NUM_SEEDS = 3


def measure(settings: Settings) -> list[Ratio]:
    """How much quicker the second way is than the first, each forward and backward on one image."""
    found = []
    for word, (wide, narrow, height, width) in {"coarse": COARSE, "fine": FINE}.items():
        shrink = 1 if settings.size is None else 16  # a quick look, for a small --size
        maps = torch.randn(
            1, wide // shrink, height // shrink, width // shrink, device=settings.device, dtype=settings.dtype
        )
        weight = torch.randn(wide // shrink, narrow // shrink, 3, 3, device=settings.device, dtype=settings.dtype)
        usual = _both_ways(_own, maps, weight)
        found += [
            _over(f"sub-pixel convolution, {word}", settings, usual, _both_ways(subpixel, maps, weight)),
            _over(f"channels last, {word}", settings, usual, _both_ways(_own, *_last(maps, weight))),
            _over(f"{NUM_SEEDS} seeds as groups, {word}", settings, *_seeds(maps, weight)),
            _over(f"bias without a gradient, {word}", settings, *_biases(*_last(maps, weight))),
        ]
    return [*found, _over("fused update, norm and clipping in it", settings, *_updates(settings))]


def _over(name: str, settings: Settings, usual: Side, other: Side) -> Ratio:
    spent = alternate({"usual": usual, "other": other}, settings.rounds, settings.device)
    on_cpu = settings.device.type == "cpu"
    usual_times, other_times = (
        [each.cpu if on_cpu else each.wall for each in spent[side]] for side in ("usual", "other")
    )
    return Ratio(
        f"alternatives/{name}",
        quotients(usual_times, other_times),
        "seconds (of CPU, on a CPU) of the usual way, over those of this one",
        amounts={"usual ms": 1e3 * median(usual_times), "this ms": 1e3 * median(other_times)},
    )


def _own(maps: Tensor, weight: Tensor) -> Tensor:
    return functional.conv_transpose2d(maps, weight, None, 2, 1, 1)


def _last(*tensors: Tensor) -> list[Tensor]:
    return [each.to(memory_format=torch.channels_last) for each in tensors]


def _both_ways(way: Callable[..., Tensor], *inputs: Tensor) -> Side:
    inputs = tuple(each.detach().requires_grad_() for each in inputs)

    def run() -> None:
        output = way(*inputs)
        torch.autograd.grad(output, inputs, torch.ones_like(output))

    return run


def _seeds(maps: Tensor, weight: Tensor) -> tuple[Side, Side]:
    """Several seeds one after the other; all of them as groups of one convolution."""

    def groups(maps: Tensor, weight: Tensor) -> Tensor:
        joined, weights = maps.repeat(1, NUM_SEEDS, 1, 1), weight.repeat(NUM_SEEDS, 1, 1, 1)
        return functional.conv_transpose2d(joined, weights, None, 2, 1, 1, NUM_SEEDS)

    one = _both_ways(_own, maps, weight)
    return lambda: [one() for _ in range(NUM_SEEDS)], _both_ways(groups, maps, weight)


def _biases(maps: Tensor, weight: Tensor) -> tuple[Side, Side]:
    """A layer that learns its bias; one whose bias rests."""
    bias = torch.zeros(weight.shape[1], device=weight.device, dtype=weight.dtype)

    def learned(maps: Tensor, weight: Tensor, bias: Tensor = bias) -> Tensor:
        return functional.conv_transpose2d(maps, weight, bias, 2, 1, 1)

    return _both_ways(learned, maps, weight, bias), _both_ways(learned, maps, weight)


def _updates(settings: Settings) -> tuple[Side, Side]:
    """The update of the largest layer of DETR's backbone inverse, as torch does it by default, and as we do."""
    size = (2048, 1792) if settings.size is None else (64, 64)
    layers = [nn.Linear(*size, bias=False, device=settings.device) for _ in range(2)]
    gradients = torch.full_like(layers[0].weight, 1e-3)
    plain = torch.optim.Adam(layers[0].parameters())
    fused = Updates({"layer": layers[1]}, {"layer": 1e-3}, {"layer": ("layer",)}, {})

    def usual() -> None:
        layers[0].weight.grad = gradients
        nn.utils.clip_grad_norm_(layers[0].parameters(), 1.0)
        plain.step()

    def ours() -> None:
        layers[1].weight.grad = gradients
        fused.step("layer", 1.0)

    return usual, ours

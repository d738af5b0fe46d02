"""What training costs before it is run: operations, bytes, and device hours, by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backsight.core import split_entry
from backsight.devices import choose_device, choose_precision
from backsight.engine import StagedModel
from backsight.tasks import build_chains, component_loss, make_plans

DATA_SETS = {"COCO": 118_287, "ImageNet": 1_281_167}
"""Training images."""

ADAM = 4
"""Numbers that training holds for each weight: the weight, its gradient, and two moments. All are fp32."""

FORWARD = "forward model"

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices whose product measures a device, by its type: large enough to be at full speed."""


@dataclass(frozen=True)
class Part:
    """One part of a training step: floating-point ``operations`` an image (two for a multiplication and addition), the
    number of its ``weights``, and whether it is trained."""

    operations: int
    weights: int
    trained: bool


@dataclass(frozen=True)
class Cost:
    """The parts of a step by name: the forward model once, every inverse once a seed.

    ``pixels`` is (H, W); ``seeds`` how many instances of every inverse are trained.
    """

    parts: Mapping[str, Part]
    seeds: int
    pixels: tuple[int, int]

    def times(self, name: str) -> int:
        """How often a part is computed for an image."""
        return self.seeds if self.parts[name].trained else 1

    @property
    def operations(self) -> int:
        """Of a whole step, for one image."""
        return sum(part.operations * self.times(name) for name, part in self.parts.items())

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and moments; what passes the networks comes on top, and grows with the batch."""
        return sum(4 * part.weights * self.times(n) * (ADAM if part.trained else 1) for n, part in self.parts.items())

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint: weights, two moments, and the best weights so far."""
        return sum(4 * part.weights * self.seeds * ADAM for part in self.parts.values() if part.trained)

    def seconds_an_image(self, rate: float, share: float) -> float:
        """At ``share`` (0 to 1) of the matrix ``rate`` (operations a second) of a device."""
        return self.operations / (rate * share)

    def device_hours(self, images: float, rate: float, share: float) -> float:
        """To train on so many images, those that come again counted each time."""
        return images * self.seconds_an_image(rate, share) / 3600


def cost(model: StagedModel, seeds: int = 1, inverses: Sequence[str] = ()) -> Cost:
    """The cost of a step of modular training; one image passes ``model`` and every inverse once, to be counted.

    Args:
        model: the forward model.
        seeds: instances of every inverse.
        inverses: changes to the default ones, as ``--inverse`` takes them.

    Raises:
        UserError: a change that does not fit.
    """
    (chain,) = build_chains(model, make_plans(model, inverses), [0])
    chain = chain.to(model.device).train()
    images = torch.rand(1, 3, *model.pixels.size, device=model.device)
    names = list(dict.fromkeys(name for stage in model.stages for name in (model.spec.before(stage), stage)))
    found = {name: each.float() for name, each in model.features(images, names).items()}

    def forward() -> None:
        with torch.no_grad():
            model.features(images, names)

    parts = {FORWARD: Part(count_operations(forward), count_weights(model.module), trained=False)}
    for entry, inverse in chain.items():
        if inverse.trainable:
            stage = split_entry(entry)[0]
            target = model.spec.before(stage)

            def both_ways(network: torch.nn.Module = inverse, stage: str = stage, target: str = target) -> None:
                output = network(found[stage]).float()
                component_loss(output, found[target], target, model.pixels).backward()

            parts[entry] = Part(count_operations(both_ways), count_weights(inverse), trained=True)
    return Cost(parts, seeds, model.pixels.size)


def count_weights(module: torch.nn.Module) -> int:
    """How many parameters a module has."""
    return sum(each.numel() for each in module.parameters())


def table(cost: Cost, rate: float, share: float, epochs: float) -> list[str]:
    """The lines that ``backsight cost`` prints; ``rate`` in operations a second."""
    lines = [f"{'':24}{'GFLOP an image':>16}{'weights':>14}{'times':>7}"]
    for name, part in cost.parts.items():
        lines.append(f"{name:24}{part.operations / 1e9:16.2f}{part.weights:14,}{cost.times(name):7}")
    lines += [
        f"{'a step':24}{cost.operations / 1e9:16.2f}",
        f"weights, gradients, moments: {cost.state_bytes / 2**30:.2f} GiB; a checkpoint: "
        f"{cost.checkpoint_bytes / 2**30:.2f} GiB",
        f"at {100 * share:g} % of {rate / 1e12:.3g} TFLOP/s: {1 / cost.seconds_an_image(rate, share):.4g} images/s",
    ]
    for name, images in DATA_SETS.items():
        hours = cost.device_hours(epochs * images, rate, share)
        lines.append(f"{name}, {epochs:g} epochs of {images:,} images: {hours:.4g} device hours")
    return lines


def count_operations(call: Callable[[], object]) -> int:
    """The floating-point operations of a call: two for each multiplication and addition of its matrix products.

    Attention is counted as the products that it consists of, which only its plain form shows.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], None], int]:
    """A call that multiplies square matrices for about a tenth of a second, and its number of operations."""
    size = MATRIX_SIDE.get(device.type, 4096)
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(one, other)
    start = time.perf_counter()
    (one @ other)[0, 0].item()
    repeats = max(1, round(0.1 / (time.perf_counter() - start)))

    def multiply() -> None:
        for _ in range(repeats):
            torch.mm(one, other)

    return multiply, repeats * 2 * size**3


def matrix_rate(device: str = "auto") -> float:
    """Operations a second of a matrix product here, in the precision that training takes: the median of five."""
    chosen = choose_device(device)
    dtype = torch.bfloat16 if choose_precision("auto", chosen) == "bf16" else torch.float32
    multiply, operations = matrix_product(chosen, dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply()
        if chosen.type == "cuda":
            torch.cuda.synchronize(chosen)
        seconds.append(time.perf_counter() - start)
    return operations / median(seconds)

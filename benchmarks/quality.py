"""``python -m benchmarks.quality``: how soon each recipe reaches an error, inverse by inverse.

The features of some images are computed once; every recipe then trains each inverse on them, in the same order. The CPU
seconds (on a GPU: seconds) of the steps, and of what comes before the first, are counted, and no evaluation.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from backsight.chain import Plan, build_chain
from backsight.core import IMAGE, split_entry
from backsight.data import collate, open_data
from backsight.engine import StagedModel
from backsight.inverses import Inverse
from backsight.io import write_json
from backsight.models import load_model
from backsight.options import ModelName, Recipe, parse_size
from backsight.tasks import component_loss, learning_rate, make_plans
from backsight.training.kernels import choose_memory_format, freeze_biases
from backsight.training.updates import Updates, schedule

SHARES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
"""Of the paper recipe's time: what the fast recipe is given, in runs of their own, since its rate falls to the end."""
POINTS = 8
"""Evaluations of a run of the paper's recipe."""


@dataclass
class Curve:
    """One training. ``points`` are (step, seconds, error on held-out images)."""

    entry: str
    inverse: str
    recipe: Recipe
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 0.0
    points: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """All that it took."""
        return self.points[-1][1]

    @property
    def error(self) -> float:
        """At the end."""
        return self.points[-1][2]


class Features:
    """The features of all stages, of images to train on and of others: uint8 images, half precision for the rest."""

    def __init__(self, model: StagedModel, data: str, images: int, held_out: int) -> None:
        splits = open_data(data, model.pixels)
        self.model = model
        self.train = self._compute(splits.train, min(images, len(splits.train)))
        self.validation = self._compute(splits.validation, min(held_out, len(splits.validation)))

    @torch.no_grad()
    def _compute(self, data: Any, count: int) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for start in range(0, count, 50):
            images = collate([data[index] for index in range(start, min(start + 50, count))]).images
            for name, value in self.model.features(images.to(self.model.device), self.model.stages).items():
                found.setdefault(name, []).append(value.half())
            found.setdefault(IMAGE, []).append((255 * images).round().byte().to(self.model.device))
        return {name: torch.cat(parts) for name, parts in found.items()}

    def pair(self, part: str, entry: str, chosen: Any) -> tuple[Tensor, Tensor]:
        """What the inverse of ``entry`` reads and is to give, of the images ``chosen``."""
        stage, _ = split_entry(entry)
        names = (stage, self.model.spec.before(stage))
        values: dict[str, Tensor] = getattr(self, part)
        source, target = ((values[name][chosen].float() / (255 if name == IMAGE else 1)) for name in names)
        return source, target

    def order(self, batch_size: int) -> Iterator[Tensor]:
        """Batches without end, the same for every training."""
        generator, count = torch.Generator().manual_seed(1000), len(self.train[IMAGE])
        while True:
            shuffled = torch.randperm(count, generator=generator)
            yield from shuffled[: count - count % batch_size].split(batch_size)


def train_one(
    features: Features,
    entry: str,
    plan: Plan,
    recipe: Recipe,
    seed: int,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    batch_size: int = 16,
) -> Curve:
    """Train the inverse of ``entry`` for so many steps, or seconds of CPU."""
    model = features.model
    network = build_chain(model, {entry: plan}, seed).inverses[entry].to(model.device).train()
    assert isinstance(network, Inverse)
    rate = learning_rate(plan, network, recipe)
    curve = Curve(entry, plan.inverse, recipe, seed, dict(plan.options), rate)
    freeze_biases([network])
    choose_memory_format([network], model.device)
    start = _now(model)
    if recipe != "paper" and (moments := network.moments()) is not None:
        for first in range(0, min(moments.images, len(features.train[IMAGE])), 50):
            moments.add(*features.pair("train", entry, slice(first, first + 50)))
        network.begin(moments)
    spent = _now(model) - start
    if not network.trainable:
        curve.points.append((0, round(spent, 3), error_of(features, network, entry)))
        return curve
    updates = Updates(network, recipe, rate)
    marks = {round((steps or 0) * (index + 1) / POINTS) for index in range(POINTS)}
    target, step = model.spec.before(split_entry(entry)[0]), 0
    for step, chosen in enumerate(features.order(batch_size)):
        share = step / steps if steps else spent / (seconds or 1)
        if share >= 1:
            break
        source, wanted = features.pair("train", entry, chosen)
        start = _now(model)
        component_loss(network(source), wanted, target, model.pixels).backward()
        updates.step(schedule(recipe, step, share))
        spent += _now(model) - start
        if step + 1 in marks and step + 1 != steps:
            curve.points.append((step + 1, round(spent, 3), error_of(features, network, entry)))
    curve.points.append((step, round(spent, 3), error_of(features, network, entry)))
    return curve


@torch.no_grad()
def error_of(features: Features, network: Inverse, entry: str) -> float:
    """The mean squared error on held-out images: RGB in [0, 1], or raw features."""
    network.eval()
    total, count = 0.0, len(features.validation[IMAGE])
    for start in range(0, count, 50):
        source, wanted = features.pair("validation", entry, slice(start, start + 50))
        total += (network(source) - wanted).square().mean().item() * len(source)
    network.train()
    return total / count


def _now(model: StagedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def share_to_reach(paper: Curve, fast: Sequence[Curve]) -> float | None:
    """The least share of the paper recipe's time in which another ends with its error or less."""
    reached = [each.seconds / paper.seconds for each in fast if each.error <= paper.error]
    return min(reached, default=None)


def quality(
    model: ModelName,
    data: str,
    steps: int = 2240,
    seeds: tuple[int, ...] = (0, 1),
    entries: tuple[str, ...] = (),
    inverse: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
    shares: tuple[float, ...] = SHARES,
    images: int = 4000,
    held_out: int = 300,
    batch_size: int = 16,
    size: Annotated[str | None, tyro.conf.arg(metavar="HxW")] = None,
    random_weights: bool = False,
    device: str = "cpu",
    threads: int = 1,
    json: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Train every inverse by the paper's recipe, and by the fast one in shares of that time.

    Args:
        model: a forward model.
        data: images, as for `backsight train`.
        steps: batches of the paper's recipe.
        seeds: of the inverses.
        entries: which inverses; all that are not variants if none is named.
        inverse: changes of the inverses that both recipes train, as for `backsight train`.
        also: other inverses that the fast recipe trains beside them, as backbone=deconvolution:head=4.
        shares: of the paper recipe's time that the fast one is given.
        images: to train on.
        held_out: images that errors are measured on.
        batch_size: images in a batch.
        size: of the images, if not the model's own.
        random_weights: for a model of true size.
        device: where to compute.
        threads: of the CPU.
        json: where to write the curves.
        plot: where to draw them.
    """
    torch.set_num_threads(threads)
    opened = load_model(model, size=parse_size(size), random_weights=random_weights, device=device)
    features = Features(opened, data, images, held_out)
    plans = make_plans(opened, inverse)
    wanted = entries or tuple(entry for entry in plans if "@" not in entry)
    others = {
        entry: [make_plans(opened, [each])[entry] for each in also if each.partition("=")[0] == entry]
        for entry in wanted
    }
    curves: list[Curve] = []
    for entry, seed in itertools.product(wanted, seeds):
        paper = train_one(features, entry, plans[entry], "paper", seed, steps=steps, batch_size=batch_size)
        curves.append(paper)
        _say(paper)
        for plan in (plans[entry], *others[entry]):
            fast: list[Curve] = []
            for share in shares:
                given = share * paper.seconds
                fast.append(train_one(features, entry, plan, "fast", seed, seconds=given, batch_size=batch_size))
                _say(fast[-1], paper)
                if not fast[-1].points[-1][0]:  # in closed form
                    break
            curves += fast
            reached = share_to_reach(paper, fast)
            name = _name(fast[0])
            print(f"  {entry} {name}, seed {seed}: the paper recipe's error in", end=" ")
            print("none of these times" if reached is None else f"{reached:.0%} of its time", flush=True)
    if json is not None:
        write_json(json, {"model": model, "data": data, "curves": [asdict(each) for each in curves]})
    if plot is not None:
        draw(curves, plot)


def _name(curve: Curve) -> str:
    given = ",".join(f"{name}={value}" for name, value in curve.options.items())
    return f"{curve.recipe} {curve.inverse}{':' + given if given else ''}"


def _say(curve: Curve, paper: Curve | None = None) -> None:
    beside = f", {curve.seconds / paper.seconds:.0%} of the time, {curve.error / paper.error:.2f}" if paper else ""
    print(
        f"{curve.entry} {_name(curve)}, seed {curve.seed}: {curve.error:.5f} after {curve.points[-1][0]} steps, "
        f"{curve.seconds:.1f} s{beside}",
        flush=True,
    )


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Error over seconds, a panel for each inverse, a line for each recipe (thin: each seed)."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    entries = list(dict.fromkeys(each.entry for each in curves))
    figure, axes = plt.subplots(1, len(entries), figsize=(3.2 * len(entries), 3.6), squeeze=False, layout="constrained")
    for axis, entry in zip(axes[0], entries, strict=True):
        own = [each for each in curves if each.entry == entry]
        for colour, name in enumerate(dict.fromkeys(map(_name, own))):
            for seed in dict.fromkeys(each.seed for each in own):
                chosen = [each for each in own if _name(each) == name and each.seed == seed]
                points = chosen[0].points if chosen[0].recipe == "paper" else [each.points[-1] for each in chosen]
                label = name.replace(":", ":\n", 1) if seed == own[0].seed else None
                axis.plot([p[1] for p in points], [p[2] for p in points], "o-", ms=3, color=f"C{colour}", label=label)
        axis.set(xscale="log", yscale="log", title=entry, xlabel="CPU seconds")
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_locator(LogLocator(subs=(1, 2, 5)))
            each.set_major_formatter(FormatStrFormatter("%g"))
            each.set_minor_formatter(NullFormatter())
        axis.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    axes[0][0].set_ylabel("mean squared error")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    tyro.cli(quality)

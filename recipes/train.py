"""Training the zoo's forward models from nothing: one loop for all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from backsight.core import UserError
from backsight.data import ImageData
from backsight.data.base import Batch
from backsight.data.world import World
from backsight.io import write_json
from backsight.validation import Number, Positive, convert
from recipes import classifier, detector
from recipes.classifier import ClassifierLearner
from recipes.detector import DetectorLearner
from recipes.evaluate import load_forward, measure
from recipes.photos import Photos
from recipes.recipe import Recipe, find_recipe
from recipes.spread import compare, in_words

_EVERY = 500  # steps between two looks at the validation scenes
_LOOK = 500  # how many of those


class Scenes:
    """Scenes to learn from, none drawn twice, and others to look at during and after it."""

    def __init__(self, recipe: Recipe, test: int) -> None:
        self.recipe = recipe
        self.validation: ImageData = self._world(1, _LOOK)
        self.test: ImageData = self._world(2, test)

    def batch(self, step: int) -> Batch:
        """That of a ``step``."""
        first = step * self.recipe.batch_size
        # The stream is as long as the run.
        world = self._world(0, self.recipe.steps * self.recipe.batch_size)
        return world.batch(range(first, first + self.recipe.batch_size))

    def _world(self, split: int, length: int) -> World:
        assert self.recipe.law is not None
        single = self.recipe.architecture == "vit"
        return World(self.recipe.law, self.recipe.size, 3 * self.recipe.seed + split, length, single=single)


class Learner(Protocol):
    """A model, what it minimises, and how it is written to a folder that its library can load."""

    model: Any

    def parameters(self) -> list[nn.Parameter]:
        """What is to be trained."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """What is to be minimised on ``batch``, a scalar."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model's files into ``folder``."""
        ...


PIXELS = {"detr": detector.PIXELS, "vit": classifier.PIXELS}

LEARNERS: dict[str, Callable[[Recipe, torch.device], Learner]] = {
    "detr": DetectorLearner,
    "deformable-detr": DetectorLearner,
    "vit": ClassifierLearner,
}


def train_forward(
    name: str,
    out: str | Path,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    test: int = 2_000,
    data: str | None = None,
    device: str = "cpu",
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train the forward model ``name`` of the zoo from nothing into ``out``, and measure it on ``test`` fresh scenes,
    or on the test photographs. ``data`` says where photographs are, if not where the recipe says.

    ``steps`` and ``seed`` override the recipe's; ``minutes`` ends the run early, its schedule of learning rates
    shortened to fit. The folder can be loaded from the first validation on. Gives the card, also in ``card.json``.

    Raises:
        UserError: there is no such name, ``steps`` or ``minutes`` are not positive, or torch is too old for the recipe.
    """
    recipe = find_recipe(name)
    convert(steps, Number | None, "--steps")
    convert(minutes, Positive | None, "--minutes")
    recipe = replace(recipe, steps=steps or recipe.steps, seed=recipe.seed if seed is None else seed)
    torch.manual_seed(recipe.seed)
    learner = LEARNERS[recipe.architecture](recipe, torch.device(device))
    images = Photos(recipe, PIXELS[recipe.architecture], torch.device(device), data) if recipe.photos else None
    source = images or Scenes(recipe, test)
    started = time.monotonic()
    taken = _fit(learner, recipe, source, Path(out), minutes, log)
    learner.save(Path(out))
    seconds = time.monotonic() - started
    card = _card(name.removeprefix("zoo/"), recipe, learner, taken, seconds, Path(out), source.test)
    write_json(Path(out) / "card.json", card)
    log(f"{name}: {card['figures']}; {in_words(compare(name, card['figures']))}; {taken} steps, {seconds:.0f} s")
    return card


def _fit(
    learner: Learner,
    recipe: Recipe,
    images: Scenes | Photos,
    out: Path,
    minutes: float | None,
    log: Callable[[str], None],
) -> int:
    """Train until the steps or the minutes are used up; gives the number of steps taken."""
    optimisers = _optimisers(learner, recipe)
    started, step, mean = time.monotonic(), 0, math.nan
    for step, progress in _progress(recipe.steps, minutes):
        for optimiser, highest in optimisers:
            optimiser.param_groups[0]["lr"] = highest * rate(recipe, step, progress)
            optimiser.zero_grad()
        loss = learner.loss(images.batch(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), recipe.clip)
        for optimiser, _ in optimisers:
            optimiser.step()
        mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            log(f"step {step} loss {mean:.3f} ({time.monotonic() - started:.0f} s)")
        if step % _EVERY == _EVERY // 2:
            log(f"step {step} {measure(learner.model, images.validation)}")
            learner.save(out)
    return step + 1


def _optimisers(learner: Learner, recipe: Recipe) -> list[tuple[torch.optim.Optimizer, float]]:
    """Who changes the weights, each with its highest learning rate."""
    hidden = [weights for name, weights in learner.model.named_parameters() if "blocks" in name and weights.ndim == 2]
    hidden = hidden if recipe.muon else []
    others = [weights for weights in learner.parameters() if all(weights is not each for each in hidden)]
    decay = recipe.weight_decay
    optimisers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.AdamW(others, lr=recipe.learning_rate, weight_decay=decay, fused=True), recipe.learning_rate)
    ]
    if hidden:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(f"the recipe needs Muon, which torch {torch.__version__} lacks: upgrade to torch 2.9")
        muon = torch.optim.Muon(hidden, lr=recipe.muon, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        optimisers.append((muon, recipe.muon))
    return optimisers


def _progress(steps: int, minutes: float | None) -> Iterator[tuple[int, float]]:
    # Each step and the part of the run that is behind it, by steps or by the clock, whichever is further.
    started = time.monotonic()
    for step in range(steps):
        elapsed = (time.monotonic() - started) / 60
        progress = max(step / steps, elapsed / minutes if minutes else 0.0)
        if progress >= 1:
            return
        yield step, progress


def rate(recipe: Recipe, step: int, progress: float) -> float:
    """The learning rate at ``step``, as a part of the highest: a ramp, a plateau, half a cosine (``progress`` 0..1)."""
    fall = max(0.0, (progress - recipe.flat) / (1 - recipe.flat))
    return min(1.0, (step + 1) / recipe.warmup) * (1 + math.cos(math.pi * fall)) / 2


def _card(
    name: str, recipe: Recipe, learner: Learner, steps: int, seconds: float, out: Path, test: ImageData
) -> dict[str, Any]:
    return {
        "name": name,
        "task": "classify" if recipe.architecture == "vit" else "detect",
        "data": recipe.data,
        "size": list(recipe.size),
        "recipe": asdict(recipe),
        "steps": steps,
        "images": steps * recipe.batch_size,
        "seconds": round(seconds),
        "parameters": sum(weights.numel() for weights in learner.model.parameters()),
        "figures": measure(load_forward(out, recipe), test),
        "test": {"images": len(test), "fingerprint": test.fingerprint()},
        "command": f"python -m recipes {name}",
        "versions": {package: version(package) for package in ("torch", "transformers", "timm")},
    }

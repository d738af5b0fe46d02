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
from backsight.data.base import Batch
from backsight.data.world import World
from backsight.io import write_json
from backsight.validation import Number, Positive, convert
from recipes.classifier import ClassifierLearner
from recipes.detector import DetectorLearner
from recipes.evaluate import evaluate_forward, measure
from recipes.recipe import SIZE, Recipe, find_recipe
from recipes.spread import compare, in_words

_EVERY = 500  # steps between two looks at the validation scenes
_LOOK = 500  # how many of those


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


LEARNERS: dict[str, Callable[[Recipe], Learner]] = {
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
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train the forward model ``name`` of the zoo from nothing into ``out``, and measure it on ``test`` fresh scenes.

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
    learner = LEARNERS[recipe.architecture](recipe)
    started = time.monotonic()
    taken = _fit(learner, recipe, Path(out), minutes, log)
    learner.save(Path(out))
    seconds = time.monotonic() - started
    card = _card(name.removeprefix("zoo/"), recipe, learner, taken, seconds, Path(out), test)
    write_json(Path(out) / "card.json", card)
    log(f"{name}: {in_words(compare(name, card['figures']))}; {taken} steps, {seconds:.0f} s")
    return card


def _fit(learner: Learner, recipe: Recipe, out: Path, minutes: float | None, log: Callable[[str], None]) -> int:
    """Train until the steps or the minutes are used up; gives the number of steps taken."""
    optimisers = _optimisers(learner, recipe)
    watched, started, step, mean = _world(recipe, split=1, length=_LOOK), time.monotonic(), 0, math.nan
    for step, progress in _progress(recipe.steps, minutes):
        for optimiser, highest in optimisers:
            optimiser.param_groups[0]["lr"] = highest * rate(recipe, step, progress)
            optimiser.zero_grad()
        first = step * recipe.batch_size
        loss = learner.loss(_world(recipe, split=0).batch(range(first, first + recipe.batch_size)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), recipe.clip)
        for optimiser, _ in optimisers:
            optimiser.step()
        mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            log(f"step {step} loss {mean:.3f} ({time.monotonic() - started:.0f} s)")
        if step % _EVERY == _EVERY // 2:
            log(f"step {step} {measure(learner.model, watched)}")
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


def _world(recipe: Recipe, split: int, length: int | None = None) -> World:
    # Every step draws fresh scenes: the training stream is as long as the run.
    length = length or recipe.steps * recipe.batch_size
    return World(recipe.law, SIZE, 3 * recipe.seed + split, length, single=recipe.architecture == "vit")


def _card(
    name: str, recipe: Recipe, learner: Learner, steps: int, seconds: float, out: Path, num: int
) -> dict[str, Any]:
    test = _world(recipe, split=2, length=num)
    return {
        "name": name,
        "task": "classify" if recipe.architecture == "vit" else "detect",
        "data": recipe.data,
        "size": list(SIZE),
        "recipe": asdict(recipe),
        "steps": steps,
        "images": steps * recipe.batch_size,
        "seconds": round(seconds),
        "parameters": sum(weights.numel() for weights in learner.model.parameters()),
        "figures": evaluate_forward(name, out, num=len(test), seed=recipe.seed),
        "test": {"images": len(test), "fingerprint": test.fingerprint()},
        "command": f"python -m recipes {name}",
        "versions": {package: version(package) for package in ("torch", "transformers", "timm")},
    }

"""Training the inverse chains that ship beside the zoo's forward models."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from backsight.chain import ChainEnsemble
from backsight.core import UserError
from backsight.data import loader, open_data
from backsight.engine import StagedModel
from backsight.evaluation import evaluate
from backsight.io import read_tensors, write_bytes, write_json
from backsight.metrics import mse
from backsight.models import load_model
from backsight.options import ModelOptions, TrainOptions
from backsight.results import MEAN_IMAGE, Result
from backsight.training import train_run
from backsight.training_range import MOST, Measured, Recorder, TrainingRange
from backsight.validation import Number, Positive, convert
from recipes.photos import Photos
from recipes.recipe import CHAINS, ChainRecipe, find_recipe
from recipes.spread import compare_chains, in_words


def train_chains(
    name: str,
    folder: str | Path,
    steps: int | None = None,
    minutes: float | None = None,
    test: int = 2_000,
    data: str | None = None,
    device: str = "cpu",
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train the chains of the forward model ``name`` whose files are in ``folder``, in bfloat16 beside them, of which
    a wheel's compression makes less than of half precision.

    The chains go to ``folder/chains/<seed>``, the mean image of what they were trained on beside them, their figures on
    ``test`` fresh scenes, measured on the very files, into ``folder/card.json`` under ``chains``; the run that made
    them stays in ``folder/run``. Gives that part of the card.

    Raises:
        UserError: there is no such name, or no trained model in ``folder``.
    """
    folder, name = Path(folder), name.removeprefix("zoo/")
    convert(steps, Number | None, "--steps")
    convert(minutes, Positive | None, "--minutes")
    recipe, data = CHAINS[name], data or find_recipe(name).data
    if not (folder / "card.json").is_file():
        raise UserError(f"no trained {name} in {folder}: train it first, without --chains")
    model = load_model(str(folder), device=device)
    model.name = model.weights = f"zoo/{name}"  # which is how the chains will find it again
    started = time.monotonic()
    run = folder / "run"
    forward = find_recipe(name)
    training = data
    if recipe.moved:
        photos = Photos(forward, model.pixels, torch.device(device), data)
        training = photos.write(folder / "moved", recipe.moved)
    options = TrainOptions(
        data=training,
        out=run,
        steps=None if minutes else steps or recipe.steps,
        minutes=minutes,
        compile="off",
        seeds=recipe.seeds,
        batch_size=recipe.batch_size,
        inverse=recipe.inverses,
        max_test=min(100, test),  # the figures of the card are measured below
        tracker="none",
        workers=0,
        overwrite=True,
    )
    trained = train_run(model, options, ModelOptions(device=device))
    seconds = time.monotonic() - started
    shutil.rmtree(folder / "chains", ignore_errors=True)
    for chain in trained.chains:
        chain.save(folder / "chains" / str(chain.seed), dtype=torch.bfloat16)
    mean = read_tensors(run / "mean_image.safetensors")["mean_image"]
    write_bytes(folder / "mean_image.safetensors", save({"mean_image": mean.half()}))
    batches = list(loader(open_data(data, model.pixels).test, 50, limit=test))
    found = evaluate(model, ChainEnsemble.from_pretrained(folder / "chains"), batches, mean, {"mse": mse})
    keep_range(model, folder, data)
    card = _card(name, recipe, options, found, seconds)
    write_json(folder / "card.json", {**json.loads((folder / "card.json").read_text("utf-8")), "chains": card})
    log(f"{name}: {in_words(compare_chains(name, card['relative']))}; {seconds:.0f} s")
    return card


def keep_range(model: StagedModel, folder: str | Path, data: str, num: int = MOST) -> TrainingRange | None:
    """Write the range of ``num`` fresh scenes beside the chains in ``folder``."""
    recorder = Recorder(model, ChainEnsemble.from_pretrained(Path(folder) / "chains"))
    with torch.no_grad():
        for batch in loader(open_data(data, model.pixels).test, 50, limit=num):
            for _ in recorder(batch)[1]:  # measured once its outputs are used up
                pass
    known = TrainingRange.of(Measured.joined(recorder.parts))
    if known is not None:
        known.save(folder)
    return known


def _card(name: str, recipe: ChainRecipe, options: TrainOptions, found: Result, seconds: float) -> dict[str, Any]:
    """``mse`` (RGB in [0, 1]) by stage and seed, and ``relative`` to that of the training data's mean image."""
    mean = found.one(stage=MEAN_IMAGE, metric="mse").mean()
    errors = {str(each.labels["stage"]): each.by_seed() for each in found.select(metric="mse")}
    del errors[MEAN_IMAGE]
    return {
        "recipe": asdict(recipe),
        "steps": options.steps,
        "images": (options.steps or 0) * recipe.batch_size,
        "seconds": round(seconds),
        "test_images": found.subjects[0]["num_images"],
        "mse": {"mean image": mean, **errors},
        "relative": {entry: [round(value / mean, 4) for value in values] for entry, values in errors.items()},
        "command": f"python -m recipes {name} --chains",
    }

"""How good a forward model of the zoo is, on scenes it has never seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import DeformableDetrForObjectDetection, DetrForObjectDetection

from backsight.core import Classes, Detections
from backsight.data.base import Batch, Target
from backsight.data.world import World
from backsight.evaluation import right_answers
from backsight.metrics import average_precision
from backsight.shipped import ZOO
from recipes import classifier, detector
from recipes.recipe import SIZE, Recipe, find_recipe


def load_forward(folder: str | Path, recipe: Recipe) -> nn.Module:
    """The model in ``folder`` as its library loads it, in evaluation mode."""
    if recipe.architecture == "vit":
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    family: Any = DetrForObjectDetection if recipe.architecture == "detr" else DeformableDetrForObjectDetection
    return family.from_pretrained(folder, local_files_only=True).eval()


def evaluate_forward(name: str, folder: str | Path | None = None, num: int = 2_000, seed: int = 0) -> dict[str, float]:
    """Measure the model ``name`` (its shipped weights, or those in ``folder``) on ``num`` scenes of the test stream.

    Raises:
        UserError: there is no such name.
    """
    recipe = find_recipe(name)
    model = load_forward(folder or ZOO / name.removeprefix("zoo/"), recipe)
    world = World(recipe.law, SIZE, 3 * seed + 2, num, single=recipe.architecture == "vit")
    return measure(model, world)


@torch.no_grad()
def measure(model: nn.Module, world: World) -> dict[str, float]:
    """What :func:`measure_detector` or :func:`measure_classifier` says of ``model``; its mode is left as it was."""
    training = model.training
    model.eval()
    try:
        return measure_classifier(model, world) if world.single else measure_detector(model, world)
    finally:
        model.train(training)


def measure_detector(model: nn.Module, world: World) -> dict[str, float]:
    """``AP`` and ``AP50`` (COCO's average precision, boxes, 0..1) on all scenes of ``world``."""
    found: list[Detections] = []
    truths: list[Target] = []
    for batch in _batches(world):
        found += [Detections(each["boxes"], each["scores"], each["labels"]) for each in detect(model, batch.images)]
        truths += batch.targets
    figures = average_precision(found, truths)
    return {"AP": figures["AP"], "AP50": figures["AP50"], "images": len(world)}


def measure_classifier(model: nn.Module, world: World) -> dict[str, float]:
    """``accuracy`` (0..1) over all scenes of ``world``, and apart over those whose object wears its class's hue
    (``typical``) and over the others (``atypical``; absent where there are none)."""
    right: list[float] = []
    typical: list[Tensor] = []
    for batch in _batches(world):
        right += right_answers(Classes(model(classifier.PIXELS.normalise(batch.images))), batch.targets)
        # An object hidden below the limit has no attributes, which a single one never is.
        typical.append(torch.stack([target.attributes["prototypical"].any() for target in batch.targets]))
    correct, usual = torch.tensor(right), torch.cat(typical)
    parts = {"accuracy": correct, "typical": correct[usual], "atypical": correct[~usual]}
    return {name: float(part.mean()) for name, part in parts.items() if len(part)} | {"images": len(world)}


def detect(model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
    """Every query's best class (DETR) or the best classes of all queries (Deformable DETR), with no threshold.

    ``images`` ``B 3 H W`` in [0, 1] -> for each image ``boxes`` ``n 4`` (x0, y0, x1, y1 in pixels), ``scores`` and
    ``labels`` ``n``.
    """
    output = model(detector.PIXELS.normalise(images))
    height, width = images.shape[-2:]
    centre, extent = output.pred_boxes.split(2, dim=-1)
    boxes = torch.cat([centre - extent / 2, centre + extent / 2], -1) * torch.tensor([width, height, width, height])
    if isinstance(model, DetrForObjectDetection):
        scores, labels = output.logits.softmax(-1)[..., :-1].max(-1)
    else:
        scores, order = output.logits.sigmoid().flatten(1).topk(min(100, output.logits[0].numel()))
        labels, query = order % output.logits.shape[-1], order // output.logits.shape[-1]
        boxes = boxes.gather(1, query[..., None].expand(-1, -1, 4))
    return [{"boxes": b, "scores": s, "labels": k} for b, s, k in zip(boxes, scores, labels, strict=True)]


def _batches(world: World, batch_size: int = 100) -> Iterator[Batch]:
    for start in range(0, len(world), batch_size):
        yield world.batch(range(start, min(start + batch_size, len(world))))

"""How good a forward model of the zoo is, on scenes it has never seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import DeformableDetrForObjectDetection, DetrForObjectDetection

from backsight.core import Classes, Detections
from backsight.data import ImageData, loader
from backsight.data.base import Target
from backsight.data.world import World
from backsight.evaluation import right_answers
from backsight.metrics import average_precision
from backsight.shipped import ZOO
from recipes import classifier, detector
from recipes.recipe import SIZE, Recipe, find_recipe

BATCH = 100
"""Images that are measured at once."""


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
    assert recipe.law is not None
    world = World(recipe.law, SIZE, 3 * seed + 2, num, single=recipe.architecture == "vit")
    return measure(model, world)


@torch.no_grad()
def measure(model: nn.Module, data: ImageData) -> dict[str, float]:
    """What :func:`measure_detector` or :func:`measure_classifier` says of ``model``; its mode is left as it was."""
    training = model.training
    model.eval()
    try:
        of_its_kind = measure_classifier if isinstance(model, timm.models.VisionTransformer) else measure_detector
        return of_its_kind(model, data)
    finally:
        model.train(training)


def measure_detector(model: nn.Module, data: ImageData) -> dict[str, float]:
    """``AP`` and ``AP50`` (COCO's average precision, boxes, 0..1) on all images of ``data``."""
    found: list[Detections] = []
    truths: list[Target] = []
    for batch in loader(data, BATCH):
        found += [Detections(each["boxes"], each["scores"], each["labels"]) for each in detect(model, batch.images)]
        truths += batch.targets
    figures = average_precision(found, truths)
    return {"AP": figures["AP"], "AP50": figures["AP50"], "images": len(data)}


def measure_classifier(model: nn.Module, data: ImageData) -> dict[str, float]:
    """``accuracy`` (0..1) over all images of ``data``; of scenes also apart over those whose object wears its class's
    hue (``typical``) and over the others (``atypical``; absent where there are none)."""
    right: list[float] = []
    typical: list[bool] = []
    device = next(model.parameters()).device
    for batch in loader(data, BATCH):
        answers = model(classifier.PIXELS.normalise(batch.images.to(device))).cpu()
        right += right_answers(Classes(answers), batch.targets)
        if isinstance(data, World):
            # An object hidden below the limit has no attributes, which a single one never is.
            typical += [bool(target.attributes["prototypical"].any()) for target in batch.targets]
    correct, usual = torch.tensor(right), torch.tensor(typical)
    parts = {"accuracy": correct}
    if isinstance(data, World):
        parts |= {"typical": correct[usual], "atypical": correct[~usual]}
    return {name: float(part.mean()) for name, part in parts.items() if len(part)} | {"images": len(data)}


def detect(model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
    """Every query's best class (DETR) or the best classes of all queries (Deformable DETR), with no threshold.

    ``images`` ``B 3 H W`` in [0, 1] -> for each image ``boxes`` ``n 4`` (x0, y0, x1, y1 in pixels), ``scores`` and
    ``labels`` ``n``.
    """
    output = model(detector.PIXELS.normalise(images.to(next(model.parameters()).device)))
    logits, (height, width) = output.logits.cpu(), images.shape[-2:]
    centre, extent = output.pred_boxes.cpu().split(2, dim=-1)
    boxes = torch.cat([centre - extent / 2, centre + extent / 2], -1) * torch.tensor([width, height, width, height])
    if isinstance(model, DetrForObjectDetection):
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
    else:
        scores, order = logits.sigmoid().flatten(1).topk(min(100, logits[0].numel()))
        labels, query = order % logits.shape[-1], order // logits.shape[-1]
        boxes = boxes.gather(1, query[..., None].expand(-1, -1, 4))
    return [{"boxes": b, "scores": s, "labels": k} for b, s, k in zip(boxes, scores, labels, strict=True)]

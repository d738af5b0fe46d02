"""Ground truth -> the forward model's own loss: the set loss of a detector, the cross-entropy of a classifier.

A detector's loss is the one that its library computes in its forward, with the coefficients and auxiliary terms of the
model's own configuration. An image without truth (no class of the whole image; no object, crowds not counted) has no
part in it, and gives its features all the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from backsight.core import Classes, UserError, valid_sizes
from backsight.data import ImageData, Target
from backsight.engine import StagedModel

LOOKED_AT = 100
"""Images that are looked at for truth before a run begins."""

NEEDED = {
    "classify": "class of the whole image: take folder:DIR with a folder for each class, or world:prior:single",
    "detect": "boxes of objects: take coco:DIR or world",
}


def has_truth(model: StagedModel, target: Target) -> bool:
    """Whether ``target`` says what the model should have answered."""
    if model.spec.task == "classify":
        return target.label is not None
    return bool((~target.crowd).any())


def answer(
    model: StagedModel, images: Tensor, names: Sequence[str], targets: Sequence[Target], valid: Tensor | None = None
) -> tuple[Mapping[str, Tensor], Tensor]:
    """One pass of ``B 3 H W`` in [0, 1] -> the features at ``names`` (``B N D``) and the model's own loss, a scalar.

    The loss is over the images with truth, 0 where none has any.
    """
    known = [index for index, target in enumerate(targets) if has_truth(model, target)]
    if model.spec.task == "classify":
        return _classify(model, images, names, targets, known, valid)
    return _detect(model, images, names, targets, known, valid)


def _classify(
    model: StagedModel,
    images: Tensor,
    names: Sequence[str],
    targets: Sequence[Target],
    known: list[int],
    valid: Tensor | None,
) -> tuple[Mapping[str, Tensor], Tensor]:
    trace = model.answer(images, names, valid)
    found = model.predict(trace)
    if not known or not isinstance(found, Classes):
        return trace.features, images.new_zeros(())
    labels = torch.tensor([targets[index].label for index in known], device=images.device)
    return trace.features, functional.cross_entropy(found.logits[known].float(), labels)


def _detect(
    model: StagedModel,
    images: Tensor,
    names: Sequence[str],
    targets: Sequence[Target],
    known: list[int],
    valid: Tensor | None,
) -> tuple[Mapping[str, Tensor], Tensor]:
    """Images with and without truth pass apart, which they do not notice: no statistics of a batch are in use."""
    others = [index for index in range(len(images)) if index not in known]
    if not known:
        return model.answer(images, names, valid).features, images.new_zeros(())
    labels = as_labels([targets[index] for index in known], images[known], _part(valid, known))
    taught = model.answer(images[known], names, _part(valid, known), labels=labels)
    loss = taught.output.loss.float()
    if not others:
        return taught.features, loss
    rest = model.answer(images[others], names, _part(valid, others))
    place = torch.tensor(known + others).argsort()
    return {name: torch.cat([taught[name], rest[name]])[place] for name in taught.features}, loss


def as_labels(targets: Sequence[Target], images: Tensor, valid: Tensor | None = None) -> list[dict[str, Tensor]]:
    """Targets in the words of transformers, crowds left out: ``class_labels`` ``n``, ``boxes`` ``n 4``.

    Boxes are (cx, cy, w, h) as shares of the image ``B 3 H W``, or of its ``valid`` part, where the model counts its
    positions.
    """
    height, width = images.shape[-2:]
    sizes = [(height, width)] * len(targets) if valid is None else valid_sizes(valid)
    labels = [as_label(target, size) for target, size in zip(targets, sizes, strict=True)]
    return [{name: value.to(images.device) for name, value in label.items()} for label in labels]


def as_label(target: Target, size: tuple[int, int]) -> dict[str, Tensor]:
    """One target in the words of transformers; ``size`` is (rows, columns) of what its boxes are shares of."""
    rows, columns = size
    counted = ~target.crowd
    corners = target.boxes[counted] / target.boxes.new_tensor([columns, rows, columns, rows])
    start, end = corners.split(2, 1)
    return {"class_labels": target.labels[counted], "boxes": torch.cat([(start + end) / 2, end - start], 1)}


def _part(valid: Tensor | None, indices: list[int]) -> Tensor | None:
    return None if valid is None else valid[indices]


# ---- before a run


def check_truth(model: StagedModel, data: ImageData) -> None:
    """Refuse to train a forward model that has no loss of its own, or on data that it cannot be taught by.

    Raises:
        UserError: the model predicts nothing or has no loss; the data has no truth, or classes that the model has not.
    """
    if model.spec.task not in NEEDED:
        raise UserError(
            f"{model.name} predicts nothing that it could be taught: train it with --task modular or classic"
        )
    if model.spec.task == "detect" and "labels" not in inspect.signature(type(model.module).forward).parameters:
        raise UserError(
            f"{model.name} has no detection loss of its own: joint training takes the detectors of transformers"
        )
    samples = (data[index] for index in range(min(len(data), LOOKED_AT)))
    taught = any(sample is not None and has_truth(model, sample.target) for sample in samples)
    num = num_classes(model)
    others = [name for label, name in sorted(data.classes.items()) if label >= num]
    if others and (taught or model.spec.task == "classify"):  # whose images have no label then
        raise UserError(
            f"{data.name} has {len(others)} classes that are none of the {num} of {model.name}, the first is "
            f"'{others[0]}': train on data with the model's own classes"
        )
    if not taught:
        raise UserError(f"--task joint needs ground truth, and {data.name} has no {NEEDED[model.spec.task]}")


@torch.no_grad()
def num_classes(model: StagedModel) -> int:
    """How many classes the model tells apart, "no object" not counted."""
    if model.spec.task == "detect":
        config: Any = model.module.config
        return int(config.num_labels)
    found = model.predict(model.run(torch.zeros(1, 3, *model.pixels.size, device=model.device)))
    return found.logits.shape[-1] if isinstance(found, Classes) else 0

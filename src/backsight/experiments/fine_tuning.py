"""A classifier trained a little further, on a copy: how a model does once it has got used to a change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor, nn

from backsight.core import UserError
from backsight.data import ImageData, loader, open_data
from backsight.data.world import LENGTHS, World
from backsight.engine import StagedModel
from backsight.experiments.subject import Subject
from backsight.models import vocabulary

LOOKED_AT = 100
"""Images that are looked at for a class before the training begins."""

_LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class FineTuning:
    """``steps`` of AdamW on batches of ``batch_size`` images, its ``learning_rate`` falling to 0 as a cosine; ``seed``
    of the images' order."""

    steps: int = 400
    learning_rate: float = 1e-4
    batch_size: int = 32
    seed: int = 0


def training_data(subject: Subject, spec: str = "") -> ImageData:
    """The training split of ``spec``, or of the data that the subject is looked at with.

    Raises:
        UserError: it cannot be opened, or its images have no class.
    """
    if not spec and isinstance(subject.data, World):
        data: ImageData = replace(subject.data, seed=subject.data.seed // 3 * 3, length=LENGTHS[0])
    else:
        data = open_data(spec or subject.data.name, subject.model.pixels, vocabulary=vocabulary(subject.model)).train
    samples = (data[index] for index in range(min(len(data), LOOKED_AT)))
    if all(sample is None or sample.target.label is None for sample in samples):
        raise UserError(
            f"{data.name} has no class of the whole image to train on: take folder:DIR or world:prior:single"
        )
    return data


def fine_tune(
    model: StagedModel,
    data: ImageData,
    tuning: FineTuning,
    changed: AbstractContextManager[object] | None = None,
) -> StagedModel:
    """Train a classifier on ``data`` by cross-entropy, in place, as long as ``changed`` is in force; returns it.

    Gradients are cut to a norm of 1. Take :func:`~backsight.models.family` first to keep a model as it is.

    Raises:
        UserError: the data has classes that the model does not.
    """
    module = model.module.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(module.parameters(), tuning.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, tuning.steps)
    try:
        with changed or nullcontext(), torch.enable_grad():
            for images, labels in _batches(data, tuning, model.device):
                logits = module(model.pixels.normalise(images), **model.arguments)
                if int(labels.max()) >= logits.shape[-1]:
                    raise UserError(
                        f"{data.name} has a class {int(labels.max())}, {model.name} knows {logits.shape[-1]} classes "
                        "from 0 on: train on data with the model's own classes"
                    )
                optimiser.zero_grad()
                nn.functional.cross_entropy(logits, labels).backward()
                nn.utils.clip_grad_norm_(module.parameters(), _LARGEST_GRADIENT)
                optimiser.step()
                schedule.step()
    finally:
        module.eval().requires_grad_(False)
    return model


def _batches(data: ImageData, tuning: FineTuning, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Images ``B 3 H W`` and their classes ``B``, epoch after epoch, until there were as many as there are steps."""
    done = 0
    for epoch in count():
        batches = loader(data, tuning.batch_size, seed=tuning.seed, epoch=epoch, shuffle=True, device=device)
        for batch in batches:
            known = [index for index, target in enumerate(batch.targets) if target.label is not None]
            if done == tuning.steps:
                return
            if known:
                yield batch.images[known], torch.tensor([batch.targets[index].label for index in known], device=device)
                done += 1

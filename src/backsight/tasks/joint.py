"""Joint training of a forward model and its inverses (paper, eq. 3), and the forward model's own loss."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional

from backsight.chain import InverseChain
from backsight.core import IMAGE, Classes, Key, UserError, split_entry, valid_sizes
from backsight.data import ImageData, Target
from backsight.engine import StagedModel
from backsight.models import duplicate
from backsight.options import Update
from backsight.tasks.task import Loss, Task, image_loss, stage_loss

UPDATES: tuple[Update, ...] = get_args(Update)
"""Which loss trains which weights, see :class:`Joint`."""

FORWARD, TASK, TOTAL = "forward", "task", "joint"
"""In the stage's place of a key: the forward model, among networks; its own loss, and equation 3, among losses."""

LEARNING_RATE = 1e-5
"""Of the forward model, which begins with trained weights (the authors' choice)."""

CLIPS = {"detect": 0.1, "classify": 1.0}
"""The largest norm of a forward model's gradient (the authors' choice)."""

NUM_CHECKED = 100
"""Images that are searched for ground truth before a run begins."""

GROUND_TRUTH = {
    "classify": "class of the whole image: take folder:DIR with a folder for each class, or world:prior:single",
    "detect": "boxes of objects: take coco:DIR or world",
}
"""What a forward model of each task learns from."""


class Joint(Task):
    """Joint training (paper, eq. 3): ``lambda * L_MSE(theta) + (1 - lambda) * L_OBJ(theta) + L_MSE(phi)``.

    ``theta`` are the weights of the forward model, of which every seed has a copy, ``phi`` those of the inverses from
    ``stage`` to the image, ``L_OBJ`` the model's own loss (:func:`answer`). lambda weighs what the forward model is
    taught; the inverses see the reconstruction alone, whatever it is. The forward model stays in evaluation mode: no
    dropout, and the statistics of its normalisations as they are.

    ``update`` says what ``L_MSE`` is, and which weights it trains, as in the authors' code:

    - ``chain``: the error of the image that all inverses from ``stage`` on make together; all weights.
    - ``sum``: the errors of all components on true features, added; all weights. The forward model's features are
      targets here too, and are drawn towards what their inverses make of them.
    - ``isolated``: the same errors, but only that of the image reaches the forward model, through the first stage;
      every other one trains its own inverse alone.
    - ``backwards-only``: that of ``chain``, and only the inverses are trained: the forward model stays as it was.

    Args:
        model: the forward model; it is not changed.
        chains: a chain for each seed.
        stage: the stage that images are reconstructed from.
        trade_off: lambda, 0 (the task alone) to 1 (the reconstruction alone).
        update: as above.
        learning_rate: of the forward models.
    """

    def __init__(
        self,
        model: StagedModel,
        chains: Sequence[InverseChain],
        stage: str,
        trade_off: float,
        update: Update = "chain",
        learning_rate: float = LEARNING_RATE,
    ) -> None:
        super().__init__(model, chains, stage)
        self.stage, self.trade_off, self.update = stage, trade_off, update
        self.entries = self.chains[0].path(stage)
        self.forwards = {chain.seed: duplicate(model) for chain in self.chains}
        for chain in self.chains:
            self.covers.update(self._losses_of(chain.seed))
        if update != "backwards-only":
            for seed, forward in self.forwards.items():
                key = Key(seed, FORWARD)
                self.networks[key] = forward.module.requires_grad_(True)
                self.learning_rates[key], self.clips[key] = learning_rate, CLIPS[model.spec.task]

    @property
    def _errors(self) -> list[str]:
        """The errors whose sum is ``L_MSE`` of the forward model: of the image, or of entries."""
        if self.update == "sum":
            return self.entries
        return self.entries[-1:] if self.update == "isolated" else [IMAGE]

    def _losses_of(self, seed: int) -> dict[Key, tuple[Key, ...]]:
        """The losses of a seed, as :meth:`losses` gives them, with the networks that each trains."""
        forward = () if self.update == "backwards-only" else (Key(seed, FORWARD),)
        inverses = [key for entry in self.entries if (key := Key.of(seed, entry)) in self.networks]
        isolated = [key for key in inverses if key.entry != self.entries[-1]] if self.update == "isolated" else []
        together = [key for key in inverses if key not in isolated]
        logged = [Key(seed, TASK), *(Key.of(seed, name) for name in self._errors)]
        return {
            **dict.fromkeys(logged, ()),
            Key(seed, TOTAL): (*forward, *together),
            **{key: (key,) for key in isolated},
        }

    def losses(self, images: Tensor, valid: Tensor | None = None, targets: Sequence[Target] = ()) -> Iterator[Loss]:
        """``B 3 H W`` in [0, 1] -> for every seed the forward model's own loss (``"task"``) and the errors that are
        added to it, which are only logged; then equation 3 (``"joint"``); of isolated inverses one more each."""
        for chain in self.chains:
            names = [self.stage] if self._errors == [IMAGE] else self._stages()
            found, objective = answer(self.forwards[chain.seed], images, names, targets, valid)
            features = {IMAGE: images, **{name: value.float() for name, value in found.items()}}
            yield self._loss(chain, TASK, objective.detach())
            weighed = {name: scale_gradient(value, self.trade_off) for name, value in features.items()}
            errors = {name: self._error(chain, name, weighed, valid) for name in self._errors}
            for name, error in errors.items():
                yield self._loss(chain, name, error.detach())
            yield self._loss(chain, TOTAL, self._total(torch.stack([*errors.values()]).sum(), objective))
            if self.update == "isolated":
                alone = {name: value.detach() for name, value in features.items()}
                for entry in self.entries[:-1]:
                    yield self._loss(chain, entry, self._error(chain, entry, alone, valid))

    def _loss(self, chain: InverseChain, name: str, value: Tensor) -> Loss:
        key = Key.of(chain.seed, name)
        return key, value, self.covers[key]

    def _error(self, chain: InverseChain, name: str, features: Mapping[str, Tensor], valid: Tensor | None) -> Tensor:
        if name == IMAGE:
            return image_loss(self.model, chain, features[self.stage], self.stage, features[IMAGE], valid)
        return stage_loss(self.model, chain.inverses[name], split_entry(name)[0], features, valid)

    def _total(self, error: Tensor, objective: Tensor) -> Tensor:
        """Equation 3. What ``error`` hands to the forward model is weighed on the way, so here lambda is in the value
        alone: one pass of the inverses serves both of its places."""
        task = objective if self.trade_off < 1 else objective.detach()
        return error + self.trade_off * error.detach() + (1 - self.trade_off) * task

    def _stages(self) -> list[str]:
        """The stages that the inverses read, or paint."""
        stages = [split_entry(entry)[0] for entry in self.entries]
        return list(dict.fromkeys([*stages, *map(self.model.spec.before, stages)]))

    def forward_model(self, seed: int) -> StagedModel:
        """The copy that the chain of ``seed`` inverts."""
        return self.forwards[seed]


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradients[0], None


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """``values`` as they are, with their gradient multiplied by ``factor``; cut off at 0."""
    return _Scaled.apply(values, factor) if factor else values.detach()  # pyright: ignore[reportReturnType]


# ---- the forward model's own loss


def has_truth(model: StagedModel, target: Target) -> bool:
    """Whether ``target`` has what the model should have answered."""
    if model.spec.task == "classify":
        return target.label is not None
    return bool((~target.crowd).any())


def answer(
    model: StagedModel, images: Tensor, names: Sequence[str], targets: Sequence[Target], valid: Tensor | None = None
) -> tuple[Mapping[str, Tensor], Tensor]:
    """One pass of ``B 3 H W`` in [0, 1] -> the features at ``names`` (``B N D``) and the model's own loss, a scalar.

    A detector's loss is the one that its library computes in its forward, with the coefficients and auxiliary terms of
    the model's own configuration; a classifier's is the cross-entropy. It is over the images with ground truth (a class
    of the whole image; an object that is no crowd), 0 where none has any. The others give their features all the same.
    """
    known = [index for index, target in enumerate(targets) if has_truth(model, target)]
    if model.spec.task == "classify":
        trace = model.answer(images, names, valid)
        found = model.predict(trace)
        if not known or not isinstance(found, Classes):
            return trace.features, images.new_zeros(())
        labels = torch.tensor([targets[index].label for index in known], device=images.device)
        return trace.features, functional.cross_entropy(found.logits[known].float(), labels)
    if not known:
        return model.answer(images, names, valid).features, images.new_zeros(())

    def part(indices: list[int]) -> Tensor | None:
        return None if valid is None else valid[indices]

    # Images with and without objects pass apart, which they do not notice: no statistics of a batch are in use.
    objects = as_labels([targets[index] for index in known], images[known], part(known))
    trace = model.answer(images[known], names, part(known), labels=objects)
    loss = trace.output.loss.float()
    others = [index for index in range(len(images)) if index not in known]
    if not others:
        return trace.features, loss
    rest = model.answer(images[others], names, part(others))
    place = torch.tensor(known + others).argsort()
    return {name: torch.cat([trace[name], rest[name]])[place] for name in trace.features}, loss


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


def check_truth(model: StagedModel, data: ImageData) -> None:
    """Refuse to train a forward model that has no loss of its own, or on data without ground truth for it.

    Raises:
        UserError: the model predicts nothing or has no loss; the data has no truth, or classes that the model has not.
    """
    if model.spec.task not in GROUND_TRUTH:
        raise UserError(f"{model.name} has no task that it could be trained for: use --task modular or classic")
    if model.spec.task == "detect" and "labels" not in inspect.signature(type(model.module).forward).parameters:
        raise UserError(f"{model.name} has no detection loss: joint training takes the detectors of transformers")
    samples = (data[index] for index in range(min(len(data), NUM_CHECKED)))
    taught = any(sample is not None and has_truth(model, sample.target) for sample in samples)
    num = num_classes(model)
    others = [name for label, name in sorted(data.classes.items()) if label >= num]
    if others and (taught or model.spec.task == "classify"):  # whose images have no label then
        raise UserError(
            f"{data.name} has {len(others)} classes that are none of the {num} of {model.name}, the first is "
            f"'{others[0]}': train on data with the model's own classes"
        )
    if not taught:
        raise UserError(f"--task joint needs ground truth, and {data.name} has no {GROUND_TRUTH[model.spec.task]}")


@torch.no_grad()
def num_classes(model: StagedModel) -> int:
    """How many classes the model has, "no object" not counted."""
    if model.spec.task == "detect":
        config: Any = model.module.config
        return int(config.num_labels)
    found = model.predict(model.run(torch.zeros(1, 3, *model.pixels.size, device=model.device)))
    return found.logits.shape[-1] if isinstance(found, Classes) else 0

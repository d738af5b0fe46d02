"""Joint training of a forward model and its inverses (paper, eq. 3), and the forward model's own loss."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from backsight.chain import InverseChain
from backsight.core import IMAGE, Classes, Key, UserError, split_entry, valid_sizes
from backsight.data import Batch, ImageData, Target
from backsight.engine import StagedModel
from backsight.models import duplicate
from backsight.options import Update
from backsight.tasks.task import Counts, Loss, Number, Task, image_loss, stage_loss

UPDATES: tuple[Update, ...] = get_args(Update)
"""Which loss trains which weights, see :class:`Joint`."""

FORWARD, TASK, TOTAL = "forward", "task", "joint"
"""In the stage's place of a key: the forward model, among networks; its own loss, and equation 3, among losses."""

LEARNING_RATE = 1e-5
"""Of the forward model, which begins with trained weights (the authors' choice)."""

CLIPS = {"detect": 0.1, "classify": 1.0}
"""The largest norm of a forward model's gradient (the authors' choice)."""

LABELLED, OBJECTS, QUERIES = "labelled images", "objects", "weight of queries"
"""What a forward model's own loss is a mean over, beside the losses in :meth:`Joint.weights`."""

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
        self.stage: str = stage
        self.trade_off: float = trade_off
        self.update = update
        self.entries: list[str] = self.chains[0].path(stage)
        self.forwards: dict[int, StagedModel] = {chain.seed: duplicate(model) for chain in self.chains}
        stages = [stage] if self._errors == [IMAGE] else self._stages()
        learned = [split_entry(self.entries[-1])[0]] if update == "isolated" else stages
        for chain in self.chains:
            self.covers.update(self._losses_of(chain.seed))
            forward = ForwardPass(self.forwards[chain.seed], stages, learned, trade_off)
            self.modules[Key(chain.seed, FORWARD)] = forward
        self.over: dict[Key, str] = {
            key: self._over(key.entry) for key in self.covers if key.entry in (IMAGE, *self.entries)
        }
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

    def losses(
        self,
        images: Tensor,
        valid: Tensor | None = None,
        targets: Sequence[Target] = (),
        counts: Counts | None = None,
    ) -> Iterator[Loss]:
        """``B 3 H W`` in [0, 1] -> for every seed the forward model's own loss (``"task"``) and the errors that are
        added to it, which are only logged; then equation 3 (``"joint"``); of isolated inverses one more each."""
        for chain in self.chains:
            learned, features, objective = self.modules[Key(chain.seed, FORWARD)](images, valid, targets, counts)
            yield self._loss(chain, TASK, objective.detach())
            errors = {name: self._error(chain, name, learned, valid, counts) for name in self._errors}
            for name, error in errors.items():
                yield self._loss(chain, name, error.detach())
            yield self._loss(chain, TOTAL, self._total(torch.stack([*errors.values()]).sum(), objective))
            if self.update == "isolated":
                for entry in self.entries[:-1]:
                    yield self._loss(chain, entry, self._error(chain, entry, features, valid, counts))

    def weights(self, batch: Batch) -> dict[Any, Number]:
        """How much each loss counts, and what the forward model's own loss is a mean over."""
        return {**super().weights(batch), **truth_in(self.model, batch.targets)}

    def _loss(self, chain: InverseChain, name: str, value: Tensor) -> Loss:
        key = Key.of(chain.seed, name)
        return key, value, self.covers[key]

    def _error(
        self,
        chain: InverseChain,
        name: str,
        features: Mapping[str, Tensor],
        valid: Tensor | None,
        counts: Counts | None,
    ) -> Tensor:
        if name == IMAGE:
            path = self.path(chain, self.stage)
            error = image_loss(self.model, path, features[self.stage], features[IMAGE], valid)
        else:
            inverse = self.modules.get(Key.of(chain.seed, name), chain.inverses[name])
            error = stage_loss(self.model, inverse, split_entry(name)[0], features, valid)
        return error if counts is None else error * counts.share(Key.of(chain.seed, name))

    def _over(self, name: str) -> str:
        return IMAGE if name == IMAGE else self.model.spec.before(split_entry(name)[0])

    def _total(self, error: Tensor, objective: Tensor) -> Tensor:
        """Equation 3. What ``error`` hands to the forward model is weighed on the way, so here lambda is in the value
        alone: one pass of the inverses serves both of its places."""
        return error + self.trade_off * error.detach() + (1 - self.trade_off) * objective

    def _stages(self) -> list[str]:
        """The stages that the inverses read, or paint."""
        stages = [split_entry(entry)[0] for entry in self.entries]
        return list(dict.fromkeys([*stages, *map(self.model.spec.before, stages)]))

    def forward_model(self, seed: int) -> StagedModel:
        """The copy that the chain of ``seed`` inverts."""
        return self.forwards[seed]


class ForwardPass(nn.Module):
    """A pass of a forward model that is trained, whose outputs are all that a loss may go back from: what several
    processes wrap, since theirs follow from these which weights have no gradient.

    Args:
        model: the forward model.
        names: the stages whose features are given.
        learned: those among them through which the reconstruction reaches the model.
        trade_off: lambda.
    """

    def __init__(self, model: StagedModel, names: Sequence[str], learned: Sequence[str], trade_off: float) -> None:
        super().__init__()
        self.module: nn.Module = model.module
        self.model: StagedModel = model
        self.names: Sequence[str] = names
        self.learned: Sequence[str] = learned
        self.trade_off: float = trade_off

    def forward(
        self, images: Tensor, valid: Tensor | None, targets: Sequence[Target], counts: Counts | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """``B 3 H W`` in [0, 1] -> the features that it learns from, their gradient weighed by lambda; the same as they
        are, without any; its own loss (without a gradient where lambda is 1)."""
        found, objective = answer(self.model, images, self.names, targets, valid, counts)
        features = {name: found[name].float() for name in self.names if name != IMAGE}
        learned = {name: scale_gradient(features[name], self.trade_off) for name in self.learned if name != IMAGE}
        alone = {name: value.detach() for name, value in features.items()}
        objective = objective if self.trade_off < 1 else objective.detach()
        return {**alone, **learned, IMAGE: images}, {**alone, IMAGE: images}, objective


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


def truth_in(model: StagedModel, targets: Sequence[Target]) -> dict[Any, Number]:
    """What the model's own loss is a mean over: images with a label, objects, and the weight of all queries."""
    known = [target for target in targets if has_truth(model, target)]
    if model.spec.task == "classify":
        return {LABELLED: float(len(known))}
    objects = float(sum(int((~target.crowd).sum()) for target in known))
    if not _is_softmax(model):
        return {OBJECTS: objects}
    config: Any = model.module.config
    queries = getattr(config, "num_queries", None) or config.num_detection_tokens
    return {OBJECTS: objects, QUERIES: objects + config.eos_coefficient * (queries * len(known) - objects)}


def answer(
    model: StagedModel,
    images: Tensor,
    names: Sequence[str],
    targets: Sequence[Target],
    valid: Tensor | None = None,
    counts: Counts | None = None,
) -> tuple[Mapping[str, Tensor], Tensor]:
    """One pass of ``B 3 H W`` in [0, 1] -> the features at ``names`` (``B N D``) and the model's own loss, a scalar.

    A detector's loss is the one that its library computes in its forward, with the coefficients and auxiliary terms of
    the model's own configuration; a classifier's is the cross-entropy. It is over the images with ground truth (a class
    of the whole image; an object that is no crowd), 0 where none has any. The others give their features all the same.
    Of a part of a batch (``counts``) it is what the part adds to the loss of the whole.
    """
    known = [index for index, target in enumerate(targets) if has_truth(model, target)]
    if model.spec.task == "classify":
        trace = model.answer(images, names, valid)
        found = model.predict(trace)
        if not known or not isinstance(found, Classes):
            return trace.features, images.new_zeros(())
        labels = torch.tensor([targets[index].label for index in known], device=images.device)
        loss = functional.cross_entropy(found.logits[known].float(), labels)
        return trace.features, loss if counts is None else loss * counts.share(LABELLED)
    if not known and (counts is None or counts.processes == 1):
        return model.answer(images, names, valid).features, images.new_zeros(())

    def part(indices: list[int]) -> Tensor | None:
        return None if valid is None else valid[indices]

    # Libraries average the number of boxes over all processes, so all of them have to come to their loss alike.
    taught = known or list(range(len(images)))
    given = [targets[index] for index in known] or [Target()] * len(images)
    # Images with and without objects pass apart, which they do not notice: no statistics of a batch are in use.
    objects = as_labels(given, images[taught], part(taught))
    trace = model.answer(images[taught], names, part(taught), labels=objects)
    loss = _detection_loss(model, trace.output, counts) if known else 0 * trace.output.loss.float()
    others = [index for index in range(len(images)) if index not in taught]
    if not others:
        return trace.features, loss
    rest = model.answer(images[others], names, part(others))
    place = torch.tensor(taught + others).argsort()
    return {name: torch.cat([trace[name], rest[name]])[place] for name in trace.features}, loss


def _detection_loss(model: StagedModel, output: Any, counts: Counts | None) -> Tensor:
    """The library's own loss; of a part of a batch what the part adds to that of the whole.

    Its terms are sums over boxes (or all queries), divided by a number of objects; DETR's cross-entropy alone is a
    weighted mean over its own queries.
    """
    loss = output.loss.float()
    if counts is None:
        return loss
    divisor = max(1.0, float(_divisor(model, counts)))
    share = divisor / max(1.0, float(counts.whole[OBJECTS]))
    if not _is_softmax(model):
        return loss * share
    means = torch.stack([each for name, each in output.loss_dict.items() if name.startswith("loss_ce")]).sum()
    return (loss - means) * share + means * counts.share(QUERIES)


def _divisor(model: StagedModel, counts: Counts) -> Number:
    """By how many objects the library's loss divides, where that is not less than one."""
    name = _name_of_loss(model)
    if name in ("RTDetrForObjectDetectionLoss", "DFineForObjectDetectionLoss"):
        return counts.own[OBJECTS]
    if name.startswith(("LwDetr", "RfDetr")):
        return counts.together[OBJECTS] / counts.processes
    # The sum that accelerate's `reduce` gives is a mean already, which the library divides once more.
    return counts.together[OBJECTS] / counts.processes**2


def _name_of_loss(model: StagedModel) -> str:
    return getattr(getattr(model.module, "loss_function", None), "__name__", "")


def _is_softmax(model: StagedModel) -> bool:
    """Whether a detector's loss is that of DETR itself; later ones have a focal loss, a sum as well."""
    return _name_of_loss(model) == "ForObjectDetectionLoss"


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
    takes = inspect.signature(type(model.module).forward).parameters
    if model.spec.task == "detect" and ("labels" not in takes or "input_ids" in takes):  # whose classes are words
        raise UserError(f"{model.name} has no loss of its own for classes: take a detector of transformers")
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

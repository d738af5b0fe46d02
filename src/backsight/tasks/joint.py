"""Joint training of a forward model and its inverses (paper, eq. 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from backsight.chain import InverseChain
from backsight.core import IMAGE, split_entry
from backsight.data import Target
from backsight.engine import StagedModel
from backsight.models import duplicate
from backsight.options import Update
from backsight.tasks.task import Task, entry_loss, image_loss
from backsight.tasks.truth import answer

UPDATES: tuple[Update, ...] = get_args(Update)
"""Which loss changes which weights, see :class:`Joint`."""

FORWARD, TASK, TOTAL = "forward", "task", "joint"
"""After ``SEED/``: the name of a forward model among the networks; of its own loss, and of equation 3, among losses."""

LEARNING_RATE = 1e-5
"""Of the forward model, which begins with trained weights (the authors' choice)."""

CLIPS = {"detect": 0.1, "classify": 1.0}
"""The largest norm of a forward model's gradient (the authors' choice)."""


class Joint(Task):
    """Joint training (paper, eq. 3): ``lambda * L_MSE(theta) + (1 - lambda) * L_OBJ(theta) + L_MSE(phi)``.

    ``theta`` are the weights of the forward model, of which every seed has a copy, ``phi`` those of the inverses from
    ``stage`` to the image, ``L_OBJ`` the model's own loss (:mod:`~backsight.tasks.truth`). lambda weighs what the
    forward model is taught; the inverses see the reconstruction alone, whatever it is. The forward model stays in
    evaluation mode: no dropout, and the statistics of its normalisations as they are.

    ``update`` says what ``L_MSE`` is, and which weights it changes, as in the authors' code:

    - ``chain``: the error of the image that all inverses from ``stage`` on make together; all weights.
    - ``sum``: the errors of all components on true features, added; all weights. The forward model's features are
      targets here too, and are drawn towards what their inverses make of them.
    - ``isolated``: the same errors, but only that of the image reaches the forward model, through the first stage;
      every other one changes its own inverse alone.
    - ``backwards-only``: that of ``chain``, and only the inverses are changed: the forward model stays as it was.

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
        self.covers = {name: covered for chain in self.chains for name, covered in self._covers(chain.seed).items()}
        if update == "backwards-only":
            return
        for seed, forward in self.forwards.items():
            name = f"{seed}/{FORWARD}"
            self.networks[name] = forward.module.requires_grad_(True)
            self.learning_rates[name], self.clips[name] = learning_rate, CLIPS[model.spec.task]

    def _covers(self, seed: int) -> dict[str, tuple[str, ...]]:
        """The losses of a seed: first those that are only told, as :meth:`losses` gives them."""
        forward = () if self.update == "backwards-only" else (f"{seed}/{FORWARD}",)
        inverses = [name for entry in self.entries if (name := f"{seed}/{entry}") in self.networks]
        first = [name for name in inverses if name == f"{seed}/{self.entries[-1]}"]
        together = first if self.update == "isolated" else inverses
        told = [TASK, *self._taught()]
        return {
            **{f"{seed}/{name}": () for name in told},
            f"{seed}/{TOTAL}": (*forward, *together),
            **{name: (name,) for name in inverses if name not in together},
        }

    def _taught(self) -> list[str]:
        """The errors whose sum is ``L_MSE`` of the forward model."""
        if self.update == "sum":
            return self.entries
        return self.entries[-1:] if self.update == "isolated" else [IMAGE]

    def losses(
        self, images: Tensor, valid: Tensor | None = None, targets: Sequence[Target] = ()
    ) -> Iterator[tuple[str, Tensor]]:
        """``B 3 H W`` in [0, 1] -> (name, loss): ``SEED/task`` and the errors that are added, which are only told, then
        ``SEED/joint``, which is equation 3; of isolated inverses one more each."""
        for chain in self.chains:
            names = [self.stage] if self._taught() == [IMAGE] else self._stages()
            found, objective = answer(self.forwards[chain.seed], images, names, targets, valid)
            features = {IMAGE: images, **{name: value.float() for name, value in found.items()}}
            yield f"{chain.seed}/{TASK}", objective.detach()
            weighed = {name: scale_gradient(value, self.trade_off) for name, value in features.items()}
            errors = {name: self._error(chain, name, weighed, valid) for name in self._taught()}
            for name, error in errors.items():
                yield f"{chain.seed}/{name}", error.detach()
            yield f"{chain.seed}/{TOTAL}", self._total(torch.stack([*errors.values()]).sum(), objective)
            if self.update == "isolated":
                alone = {name: value.detach() for name, value in features.items()}
                for entry in self.entries[:-1]:
                    yield f"{chain.seed}/{entry}", self._error(chain, entry, alone, valid)

    def _error(self, chain: InverseChain, name: str, features: Mapping[str, Tensor], valid: Tensor | None) -> Tensor:
        if name == IMAGE:
            return image_loss(self.model, chain, features[self.stage], self.stage, features[IMAGE], valid)
        return entry_loss(self.model, chain.inverses[name], name, features, valid)

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

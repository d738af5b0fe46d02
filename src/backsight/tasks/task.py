"""What a task is: networks, and losses that train them; and which inverses are trained (``--inverse``)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from backsight.chain import InverseChain, Plan, build_chain
from backsight.chain.files import ENTRY
from backsight.core import IMAGE, Key, Pixels, UserError, entry_of, split_entry
from backsight.data import Batch, Target
from backsight.engine import StagedModel
from backsight.inverses import Inverse
from backsight.options import Recipe
from backsight.validation import Positive, Range, convert, parse

Loss = tuple[Key, Tensor, tuple[Key, ...]]
"""The name of a loss, its value (a scalar), and the networks that it trains: none where it is only logged."""


Number = Tensor | float


@dataclass(frozen=True)
class Counts:
    """What the losses of a part of a batch are means over, by loss: images, or the tokens and pixels under pictures.

    ``own`` has those of the part, ``together`` those of all parts that the ``processes`` of a run compute at the same
    time, ``whole`` those of the whole batch.
    """

    own: Mapping[Any, Number]
    together: Mapping[Any, Number]
    whole: Mapping[Any, Number]
    processes: int = 1

    def share(self, name: Any) -> Number:
        """How much of a loss of the whole batch comes from this part, 0 to 1."""
        whole = self.whole[name]
        return self.own[name] / (whole.clamp(min=1) if isinstance(whole, Tensor) else whole or 1.0)


class Task(ABC):
    """A forward pass, and losses for the networks of every seed. The loop that minimises them is in ``training``.

    Attributes:
        model: the forward model.
        chains: the inverses, a chain for each seed.
        networks: what is trained; a forward model that is trained too is ``Key(seed, "forward")``.
        computed: the inverses that are not trained.
        modules: what is called for each of them: the network itself, or what several processes wrap it in.
        learning_rates: for each network; those of the paper's recipe, unless they are changed.
        clips: the largest norm of a network's gradient, where it is not the usual one.
        covers: every loss -> the networks that it trains.
        over: the stage whose tokens (of the image: pixels) a loss is a mean over; of the image where it is not named.

    Args:
        model, chains: as above.
        stage: train only the inverses that lead from this stage to the image; None: all.

    Raises:
        UserError: a chain lacks an inverse on the way from ``stage``.
    """

    def __init__(self, model: StagedModel, chains: Sequence[InverseChain], stage: str | None = None) -> None:
        self.model: StagedModel = model
        self.chains: list[InverseChain] = list(chains)
        self.networks: dict[Key, nn.Module] = {}
        self.computed: dict[Key, Inverse] = {}
        for chain in self.chains:
            path = chain.entries if stage is None else chain.path(stage)
            for entry, inverse in chain.items():
                if not inverse.trainable:
                    self.computed[Key.of(chain.seed, entry)] = inverse
                elif entry in path:
                    self.networks[Key.of(chain.seed, entry)] = inverse
        self.modules: dict[Key, Callable[..., Any]] = dict(self.networks)
        plans = self.chains[0].plans
        self.learning_rates: dict[Key, float] = {
            key: learning_rate(plans[key.entry], each) for key, each in self.networks.items()
        }
        self.clips: dict[Key, float] = {}
        self.covers: dict[Key, tuple[Key, ...]] = {}
        self.over: dict[Key, str] = {}

    @abstractmethod
    def losses(
        self,
        images: Tensor,
        valid: Tensor | None = None,
        targets: Sequence[Target] = (),
        counts: Counts | None = None,
    ) -> Iterator[Loss]:
        """The losses of a batch one after the other, so that each graph can be freed before the next is made.

        Args:
            images: ``B 3 H W`` in [0, 1].
            valid: where the pictures are in padded images, ``B H W`` bool; only that part counts. None: everywhere.
            targets: what is known of each image, for the tasks that use it.
            counts: where these images are a part of a batch: each loss is then what it adds to that of the whole batch.
        """

    def path(self, chain: InverseChain, stage: str) -> list[Callable[[Tensor], Tensor]]:
        """What is called for the inverses of ``chain`` that lead from ``stage`` to the image, one after the other."""
        return [self.modules.get(Key.of(chain.seed, entry), chain.inverses[entry]) for entry in chain.path(stage)]

    def errors(self, losses: Mapping[Key, float]) -> dict[Key, float]:
        """The mean of every loss on the validation images -> the error of every network, which picks its best weights.

        The networks of a seed are judged together, by the sum of the losses that train them: their weights belong to
        one moment.
        """
        totals = dict.fromkeys((key.seed for key in self.networks), 0.0)
        for key, networks in self.covers.items():
            totals[key.seed] += losses[key] if networks else 0.0
        return {key: totals[key.seed] for key in self.networks}

    def weights(self, batch: Batch) -> dict[Any, Number]:
        """How much each loss of ``batch`` counts beside that of another batch, or part of one: by the images in it, or
        the tokens (and pixels) of padded ones."""
        if self.model.pixels.fit != "pad":
            return dict.fromkeys(self.covers, float(len(batch.ids)))
        valid, num = batch.shown, bool(batch.ids)
        everywhere = valid.new_full((), len(valid), dtype=torch.int64)
        over = {key: self.over.get(key, IMAGE) for key in self.covers}
        under = {stage: self.model.layout(stage).under(valid) for stage in set(over.values())}
        counts = {stage: everywhere if each is None else each.sum() for stage, each in under.items()}
        return {key: counts[stage] * num for key, stage in over.items()}

    def stop(self, loss: Key) -> list[Key]:
        """Train the networks of ``loss`` no more, nor the others of its seed: they are judged together.

        Returns:
            Their keys.
        """
        for each in self.covers:
            if each.seed == loss.seed:
                self.covers[each] = ()
        return [each for each in self.networks if each.seed == loss.seed]

    def train(self, mode: bool = True) -> None:
        """Put the inverses into training mode, or into evaluation mode. Forward models always stay in the latter."""
        for chain in self.chains:
            chain.train(mode)

    def forward_model(self, seed: int) -> StagedModel:  # noqa: ARG002
        """The forward model that the chain of ``seed`` inverts: the same for all, unless it is trained with it."""
        return self.model


# ---- losses


def component_loss(output: Tensor, target: Tensor, stage: str, pixels: Pixels, counted: Tensor | None = None) -> Tensor:
    """The mean squared error of a component; that of images is taken in the forward model's normalised space.

    ``counted`` says which tokens (or pixels, row by row) the mean is over, ``B N`` bool; None: all.
    """
    if stage == IMAGE:
        output, target = pixels.normalise(output), pixels.normalise(target)
    if counted is None:
        return nn.functional.mse_loss(output, target)
    errors = (output - target).square().mean(1 if stage == IMAGE else 2).flatten(1)
    return torch.where(counted, errors, 0).sum() / counted.sum()


def image_loss(
    model: StagedModel,
    path: Sequence[Callable[[Tensor], Tensor]],
    features: Tensor,
    images: Tensor,
    valid: Tensor | None = None,
) -> Tensor:
    """The error of the image that the inverses on a ``path`` make of ``features`` (``B N D``), in normalised space."""
    counted = None if valid is None else model.layout(IMAGE).under(valid)
    for inverse in path:
        features = inverse(features)
    return component_loss(features.float(), images, IMAGE, model.pixels, counted)


def stage_loss(
    model: StagedModel,
    inverse: Callable[..., Tensor],
    stage: str,
    features: Mapping[str, Tensor],
    valid: Tensor | None = None,
    *,
    samples: bool = False,
) -> Tensor:
    """The error of one ``inverse`` on the ``features`` of its ``stage``, against those of the stage before (eq. 1); of
    one that ``samples`` its own loss, on the same."""
    target = model.spec.before(stage)
    counted = None if valid is None else model.layout(target).under(valid)
    if samples:
        return inverse(features[stage], features[target], counted)
    return component_loss(inverse(features[stage]).float(), features[target], target, model.pixels, counted)


# ---- which inverses are trained

COMMA = re.compile(r",(?![^\[]*\])")
"""Between two options of an inverse, but not inside a list: ``depth=2,widths=[64,16]``."""


FAST_LEARNING_RATE = 1e-2
"""Of all inverses in the fast recipe, whatever their width: docs/log.md."""


def learning_rate(plan: Plan, network: nn.Module, recipe: Recipe = "paper") -> float:
    """The plan's own, else the fast recipe's, else that of the inverse's class (the authors' scripts')."""
    return float(
        plan.learning_rate or (FAST_LEARNING_RATE if recipe == "fast" else getattr(network, "learning_rate", 1e-3))
    )


def make_plans(model: StagedModel, changes: Sequence[str] = ()) -> dict[str, Plan]:
    """The inverses to train, in the order of the stages: those that the model's spec names, with a user's ``changes``.

    Args:
        model: the forward model.
        changes: ``stage=inverse:option=value,...``, ``stage@variant=...`` or ``stage=none``, see
            ``TrainOptions.inverse``. Options that a change of the same inverse leaves out stay.

    Raises:
        UserError: no such stage, another form, or a variant of a stage that is left out.
    """
    plans = {
        entry_of(stage.name, variant): Plan(name, options)
        for stage in model.spec.stages
        for variant, (name, options) in stage.inverses.items()
    }
    for change in changes:
        entry, equals, value = change.partition("=")
        if not equals or not entry or not value:
            raise UserError(f"'{change}' changes no inverse: write stage=inverse, as backbone=local")
        if not ENTRY.fullmatch(entry):
            raise UserError(f"'{entry}' names no inverse: write stage, or stage@variant of letters and digits")
        stage, _ = split_entry(entry)
        model.spec.stage(stage)
        if value == "none":
            plans.pop(entry, None)
        else:
            plans[entry] = _parse_plan(value, plans.get(entry) or plans.get(stage))
    for entry in plans:
        stage, _ = split_entry(entry)
        if stage not in plans:
            raise UserError(f"'{entry}' needs an inverse of its stage to stand beside: leave {stage} in")
    order = sorted(plans, key=lambda entry: (model.stages.index(split_entry(entry)[0]), split_entry(entry)[1]))
    return {entry: plans[entry] for entry in order}


def _parse_plan(value: str, before: Plan | None) -> Plan:
    """``name:option=value,option=value`` -> a plan."""
    name, _, text = value.partition(":")
    options: dict[str, Any] = dict(before.options) if before is not None and before.inverse == name else {}
    for option in filter(None, COMMA.split(text)):
        key, _, given = option.partition("=")
        if not given.strip():
            raise UserError(f"'{option}' is no option of an inverse: write key=value, as expansion=2")
        options[key.strip()] = parse(given, key)
    rate = convert(options.pop("learning_rate", None), Positive | None, "learning_rate")
    noise = convert(options.pop("input_noise", 0.0), Annotated[float, Range(0)], "input_noise")
    return Plan(name, options, rate, noise)


def build_chains(model: StagedModel, plans: Mapping[str, Plan], seeds: Sequence[int]) -> list[InverseChain]:
    """One new chain for every seed."""
    return [build_chain(model, plans, seed) for seed in seeds]

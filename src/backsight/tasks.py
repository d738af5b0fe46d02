"""What is optimised: a task is a forward pass and a loss for each of its networks. The loop is in ``train``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from backsight.chain import InverseChain, Plan, build_chain
from backsight.core import IMAGE, Pixels, UserError, split_entry
from backsight.staging import StagedModel

_BETWEEN_OPTIONS = re.compile(r",(?![^\[]*\])")
"""A comma, but not one inside a list: ``widths=[64,16]``."""


class Modular:
    """Modular feature inversion (paper, eq. 1): every inverse learns its own component, from its own loss alone.

    One pass of the frozen forward model feeds the inverses of all stages and seeds. The targets of a component are
    the true features of the stage before it, so that nothing one inverse gets wrong reaches another.
    """

    def __init__(self, model: StagedModel, chains: Sequence[InverseChain]) -> None:
        self.model, self.chains = model, list(chains)
        self.networks: dict[str, nn.Module] = {
            f"{chain.seed}/{entry}": inverse
            for chain in self.chains
            for entry, inverse in chain.items()
            if inverse.trainable
        }
        self.learning_rates: dict[str, float] = {
            name: learning_rate(self.chains[0].plans[name.partition("/")[2]], network)
            for name, network in self.networks.items()
        }
        self._sources = {name: split_entry(name.partition("/")[2])[0] for name in self.networks}
        self._targets = {name: model.spec.before(source) for name, source in self._sources.items()}

    def losses(self, images: Tensor, valid: Tensor | None = None) -> Iterator[tuple[str, Tensor]]:
        """``B 3 H W`` in [0, 1] -> (network, loss) one after the other, so that each graph is freed before the next.

        Of padded images, whose pictures are where ``valid`` (``B H W``, bool) says, only that part counts: the pixels
        of an image, the tokens on a grid that are at least partly under it, and all object queries. An inverse reads
        all tokens nevertheless, those of the padding too: what it makes of them there has no loss.
        """
        names = dict.fromkeys([*self._sources.values(), *self._targets.values()])
        features = {name: value.float() for name, value in self.model.features(images, list(names), valid).items()}
        for name, network in self.networks.items():
            target = self._targets[name]
            output = network(features[self._sources[name]]).float()
            counted = None if valid is None else self.model.layout(target).under(valid)
            yield name, component_loss(output, features[target], target, self.model.pixels, counted)


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


def learning_rate(plan: Plan, network: nn.Module) -> float:
    """Adam's learning rate: the plan's own, else that of the inverse's class (the paper's)."""
    return float(plan.learning_rate or getattr(network, "learning_rate", 1e-3))


def make_plans(model: StagedModel, changes: Sequence[str] = ()) -> dict[str, Plan]:
    """The inverses to train: those of the model's stages, with a user's ``changes`` (see ``TrainOptions.inverse``).

    Raises:
        UserError: a change of a stage that the model does not have, or one that is not of the form ``stage=inverse``.
    """
    plans = {
        f"{stage.name}@{variant}" if variant else stage.name: Plan(name, options)
        for stage in model.spec.stages
        for variant, (name, options) in stage.inverses.items()
    }
    for change in changes:
        entry, equals, value = change.partition("=")
        if not equals or not entry or not value:
            raise UserError(f"'{change}' changes no inverse: write stage=inverse, as backbone=local")
        stage, _ = split_entry(entry)
        model.spec.stage(stage)
        if value == "none":
            plans.pop(entry, None)
        else:
            plans[entry] = _parse_plan(value, plans.get(entry) or plans.get(stage))
    for entry in list(plans):
        if split_entry(entry)[0] not in plans:
            raise UserError(
                f"'{entry}' needs an inverse of its stage to stand beside: leave {split_entry(entry)[0]} in"
            )
    return {entry: plans[entry] for entry in sorted(plans, key=lambda name: _place(model, name))}


def _place(model: StagedModel, entry: str) -> tuple[int, str]:
    stage, variant = split_entry(entry)
    return model.stages.index(stage), variant


def _parse_plan(value: str, before: Plan | None) -> Plan:
    """``name:key=value,key=value`` -> a plan; options of the same inverse that are not named are kept."""
    name, _, text = value.partition(":")
    kept: Mapping[str, Any] = before.options if before is not None and before.inverse == name else {}
    parts = filter(None, _BETWEEN_OPTIONS.split(text))
    options = {**kept, **dict(map(_parse_option, parts))}
    rate = options.pop("learning_rate", None)
    try:
        return Plan(name, options, None if rate is None else float(rate))
    except (TypeError, ValueError) as error:
        raise UserError(f"'{rate}' is no learning rate: write a number, as learning_rate=1e-3") from error


def _parse_option(text: str) -> tuple[str, Any]:
    key, _, raw = text.partition("=")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        value = None
    if value is None:
        raise UserError(f"'{text}' is no option of an inverse: write key=value, as expansion=2")
    return key.strip(), value


def build_chains(model: StagedModel, plans: Mapping[str, Plan], seeds: Sequence[int]) -> list[InverseChain]:
    """One new chain for every seed."""
    return [build_chain(model, plans, seed) for seed in seeds]

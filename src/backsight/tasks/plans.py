"""Which inverses are trained: those of the model's stages, with a user's changes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from backsight.chain import InverseChain, Plan, build_chain
from backsight.core import UserError, split_entry
from backsight.engine import StagedModel
from backsight.validation import Positive, convert, parse

_BETWEEN_OPTIONS = re.compile(r",(?![^\[]*\])")
"""A comma, but not one inside a list: ``widths=[64,16]``."""


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
    rate = convert(options.pop("learning_rate", None), Positive | None, "learning_rate")
    return Plan(name, options, rate)


def check_ways(model: StagedModel, plans: Mapping[str, Plan]) -> None:
    """Refuse plans that leave out an inverse on the way from another to the image: no chain could be measured.

    Raises:
        UserError: there is one, or there are no plans at all.
    """
    if not plans:
        raise UserError("--inverse leaves nothing to train: leave an inverse in")
    for entry in plans:
        for stage in model.stages[: model.stages.index(split_entry(entry)[0])]:
            if stage not in plans:
                raise UserError(
                    f"no inverse of {stage} is trained, and the way from {entry} to the image leads through it: leave "
                    f"it in, or give another by --inverse {stage}=NAME"
                )


def _parse_option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not value.strip():
        raise UserError(f"'{text}' is no option of an inverse: write key=value, as expansion=2")
    return key.strip(), parse(value, key)


def build_chains(model: StagedModel, plans: Mapping[str, Plan], seeds: Sequence[int]) -> list[InverseChain]:
    """One new chain for every seed."""
    return [build_chain(model, plans, seed) for seed in seeds]

"""What is optimised: a task is a forward pass and losses for its networks. The loop is in ``training``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from backsight.chain import ChainEnsemble, InverseChain, Plan, describe
from backsight.core import UserError, split_entry
from backsight.engine import StagedModel
from backsight.inverses import Inverse
from backsight.options import TrainOptions
from backsight.tasks.beginning import RIDGE, begin, linear_chain, why_not_linear
from backsight.tasks.classic import Classic
from backsight.tasks.joint import (
    FORWARD,
    LEARNING_RATE,
    UPDATES,
    Joint,
    answer,
    as_label,
    as_labels,
    check_truth,
)
from backsight.tasks.modular import Modular
from backsight.tasks.task import Task, build_chains, component_loss, learning_rate, make_plans

logger: logging.Logger = logging.getLogger(__name__)

__all__ = [
    "FORWARD",
    "UPDATES",
    "Classic",
    "Joint",
    "Modular",
    "Task",
    "answer",
    "as_label",
    "as_labels",
    "begin",
    "build_chains",
    "check_truth",
    "component_loss",
    "learning_rate",
    "linear_chain",
    "make_plans",
    "make_task",
    "settings_of",
]


def settings_of(model: StagedModel, options: TrainOptions) -> dict[str, Any]:
    """The settings of a task, every default filled in; None where one does not apply."""
    joint, stage = options.task == "joint", None if options.task == "modular" else _stage_of(model, options)
    return {
        "task": options.task,
        "trade_off": options.trade_off,
        "update": (options.update or "chain") if joint else None,
        "stage": stage,
        "forward_learning_rate": (options.forward_learning_rate or LEARNING_RATE) if joint else None,
        "begins_with": options.chain,
    }


def _stage_of(model: StagedModel, options: TrainOptions) -> str:
    """The stage that classic and joint training reconstruct from: the last that is no prediction (the paper's choice).

    Raises:
        UserError: the model has no such stage.
    """
    if options.stage is not None:
        return model.spec.stage(options.stage).name
    return [stage.name for stage in model.spec.stages if not stage.classes][-1]


def make_task(model: StagedModel, options: TrainOptions) -> Task:
    """The task of a run, on chains that are new, or those of ``options.chain``.

    Raises:
        UserError: a stage, an inverse or a seed that is not there; noise that the task does not add.
    """
    if options.task != "modular" and any("input_noise" in change for change in options.inverse):
        raise UserError(f"input_noise is for modular training: leave it out of {options.task} training")
    chains = [chain.to(model.device).train() for chain in _begin_chains(model, options)]
    for chain in chains if options.learning_rate is not None else ():
        chain.plans = {name: replace(plan, learning_rate=options.learning_rate) for name, plan in chain.plans.items()}
    settings = settings_of(model, options)
    if options.task == "modular":
        task = Modular(model, chains)
    elif options.task == "classic":
        task = Classic(model, chains, settings["stage"])
    else:
        update, rate = settings["update"], settings["forward_learning_rate"]
        task = Joint(model, chains, settings["stage"], settings["trade_off"], update, rate)
    for key, network in task.networks.items():
        if next(network.parameters(), None) is None:
            raise UserError(f"the inverse of {key.entry} has no weights to train: give it a depth of 1 or more")
        if isinstance(network, Inverse):
            task.learning_rates[key] = learning_rate(chains[0].plans[key.entry], network, options.recipe)
    return task


def _begin_chains(model: StagedModel, options: TrainOptions) -> list[InverseChain]:
    """A chain for every seed; for classic and joint training with the inverses from their stage to the image alone.

    Raises:
        UserError: an inverse is missing on the way to the image, or stands beside another where only one way is
            trained; a chain of another model, or one that lacks a seed.
    """
    seeds = range(options.seed, options.seed + options.seeds)
    stage = None if options.task == "modular" else _stage_of(model, options)
    if options.chain is not None:
        found = ChainEnsemble.from_pretrained(options.chain)
        found.check(model)
        chains = {chain.seed: chain for chain in found.chains}
        for seed in seeds:
            if seed not in chains:
                there = ", ".join(map(str, chains))
                raise UserError(
                    f"{options.chain} has no chain of seed {seed}, it has {there}: choose by --seeds and --seed"
                )
        return [_only(model, chains[seed], stage) for seed in seeds]
    plans = _plans(model, options)
    if stage is not None:
        beside = [entry for entry in (change.partition("=")[0] for change in options.inverse) if split_entry(entry)[1]]
        if set(beside) & plans.keys():
            raise UserError(
                f"--inverse {beside[0]}: {options.task} training has one inverse for each stage, give it as "
                f"{split_entry(beside[0])[0]}=..."
            )
        plans = _on_the_way(model, plans, stage)
    if not plans:
        raise UserError("--inverse leaves nothing to train: leave an inverse in")
    for entry in plans:  # without every inverse on its way to the image no chain could be measured
        for before in model.stages[: model.stages.index(split_entry(entry)[0])]:
            if before not in plans:
                raise UserError(
                    f"no inverse of {before} is trained, and the way from {entry} to the image leads through it: "
                    f"leave it in, or give another by --inverse {before}=NAME"
                )
    return build_chains(model, plans, seeds)


def _plans(model: StagedModel, options: TrainOptions) -> dict[str, Plan]:
    """What the user asks for; by ``--recipe ridge`` a ridge regression for every stage that he leaves as it is, without
    variants. From the first stage on that can have none, stages are left out."""
    plans = make_plans(model, options.inverse)
    if options.recipe != "ridge":
        return plans
    asked = {change.partition("=")[0] for change in options.inverse}
    found: dict[str, Plan] = {}
    for entry, plan in plans.items():
        stage, variant = split_entry(entry)
        if entry in asked:
            found[entry] = plan
        elif not variant:
            if reason := why_not_linear(model, stage):
                left = model.stages[model.stages.index(stage) :]
                logger.warning("%s: %s; the chain ends before it", stage, reason)
                return {each: plan for each, plan in found.items() if split_entry(each)[0] not in left}
            found[entry] = Plan(RIDGE)
    return found


def _on_the_way(model: StagedModel, plans: Mapping[str, Plan], stage: str) -> dict[str, Plan]:
    """The plans of the stages up to ``stage``, without variants.

    Raises:
        UserError: a flow is among them, which would learn its mean alone.
    """
    wanted = model.stages[: model.stages.index(stage) + 1]
    found = {entry: plan for entry, plan in plans.items() if entry in wanted}
    for entry, plan in found.items():
        if plan.inverse == "flow":
            raise UserError(f"the inverse '{entry}' is a flow, which learns its own component: take --task modular")
    return found


def _only(model: StagedModel, chain: InverseChain, stage: str | None) -> InverseChain:
    """``chain`` with the inverses up to ``stage`` alone."""
    plans = chain.plans if stage is None else _on_the_way(model, chain.plans, stage)
    inverses = {entry: inverse for entry, inverse in chain.items() if entry in plans}
    return InverseChain(inverses, plans, model.stages, describe(model), chain.seed)

"""From a user's options to a task: which it is, what may go with it, and the chains that it begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from backsight.chain import ChainEnsemble, InverseChain, Plan, describe
from backsight.core import UserError, split_entry
from backsight.engine import StagedModel
from backsight.options import TrainOptions
from backsight.tasks.classic import Classic
from backsight.tasks.joint import LEARNING_RATE, Joint
from backsight.tasks.modular import Modular
from backsight.tasks.plans import build_chains, check_ways, make_plans
from backsight.tasks.task import Task


def facts_of(model: StagedModel, options: TrainOptions) -> dict[str, Any]:
    """What a run's configuration says of its task, every default filled in; None where it does not apply."""
    joint, stage = options.task == "joint", None if options.task == "modular" else stage_of(model, options)
    return {
        "task": options.task,
        "trade_off": options.trade_off,
        "update": (options.update or "chain") if joint else None,
        "stage": stage,
        "forward_learning_rate": (options.forward_learning_rate or LEARNING_RATE) if joint else None,
        "begins_with": options.chain,
    }


def stage_of(model: StagedModel, options: TrainOptions) -> str:
    """The stage that classic and joint training reconstruct from: the last that is no prediction (the paper's choice).

    Raises:
        UserError: the model has no stage of the name that is asked for.
    """
    if options.stage is not None:
        return model.spec.stage(options.stage).name
    return [stage.name for stage in model.spec.stages if not stage.classes][-1]


def make_task(model: StagedModel, options: TrainOptions) -> Task:
    """The task of a run, on chains that are new, or those of ``options.chain``.

    Raises:
        UserError: a stage, an inverse or a seed that is not there.
    """
    chains = [chain.to(model.device).train() for chain in begin_chains(model, options)]
    for chain in chains if options.learning_rate is not None else ():
        chain.plans = {name: replace(plan, learning_rate=options.learning_rate) for name, plan in chain.plans.items()}
    facts = facts_of(model, options)
    if options.task == "modular":
        return Modular(model, chains)
    if options.task == "classic":
        return Classic(model, chains, facts["stage"])
    return Joint(model, chains, facts["stage"], facts["trade_off"], facts["update"], facts["forward_learning_rate"])


def begin_chains(model: StagedModel, options: TrainOptions) -> list[InverseChain]:
    """A chain for every seed; for classic and joint training with the inverses from their stage to the image alone.

    Raises:
        UserError: an inverse stands beside another where only one way to the image is trained; a chain of another
            model, or one that lacks a seed.
    """
    seeds = range(options.seed, options.seed + options.seeds)
    stage = None if options.task == "modular" else stage_of(model, options)
    if options.chain is not None:
        found = ChainEnsemble.from_pretrained(options.chain)
        found.check(model)
        return [_only(model, _chain_of(found, seed, options.chain), stage) for seed in seeds]
    plans = make_plans(model, options.inverse)
    if stage is not None:
        beside = [change.partition("=")[0] for change in options.inverse if split_entry(change.partition("=")[0])[1]]
        if set(beside) & plans.keys():
            raise UserError(
                f"--inverse {beside[0]}: {options.task} training has one inverse for each stage, give it as "
                f"{split_entry(beside[0])[0]}=..."
            )
        plans = _on_the_way(model, plans, stage)
    check_ways(model, plans)
    return build_chains(model, plans, seeds)


def _on_the_way(model: StagedModel, plans: Mapping[str, Plan], stage: str) -> dict[str, Plan]:
    """The plans of the stages up to ``stage``, without variants."""
    wanted: Sequence[str] = model.stages[: model.stages.index(stage) + 1]
    return {entry: plan for entry, plan in plans.items() if entry in wanted}


def _only(model: StagedModel, chain: InverseChain, stage: str | None) -> InverseChain:
    plans = chain.plans if stage is None else _on_the_way(model, chain.plans, stage)
    inverses = {entry: inverse for entry, inverse in chain.items() if entry in plans}
    return InverseChain(inverses, plans, model.stages, describe(model), chain.seed)


def _chain_of(found: ChainEnsemble, seed: int, name: str) -> InverseChain:
    for chain in found.chains:
        if chain.seed == seed:
            return chain
    seeds = [chain.seed for chain in found.chains]
    raise UserError(
        f"{name} has no chain of seed {seed}, it has {', '.join(map(str, seeds))}: choose by --seeds and --seed"
    )

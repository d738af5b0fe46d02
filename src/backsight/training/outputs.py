"""What a run leaves once it is trained: its chains and forward models, their errors and scores, and its card."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from backsight.chain import ChainEnsemble, InverseChain, describe
from backsight.data import Batch
from backsight.engine import RANDOM, StagedModel
from backsight.error_table import markdown_table
from backsight.evaluation import ACCURACY, PRECISION, Gather, evaluate, join_seeds, task_scores
from backsight.io import write_bytes
from backsight.results import Measurement, Result
from backsight.tasks import Task
from backsight.training_range import Measured, Recorder, TrainingRange

LIBRARIES = ("backsight", "torch", "torchvision", "timm", "transformers")

Batches = Callable[[], Iterable[Batch]]
"""The same images every time that it is called."""


def versions() -> dict[str, str]:
    """The versions of everything that the numbers of a run may depend on."""
    return {name: version(name) for name in LIBRARIES}


# ---- the trained networks


def save_models(task: Task, folder: Path) -> None:
    """Write every chain into ``folder/chains/<seed>``, a forward model of its own into ``folder/forward/<seed>``."""
    for chain in task.chains:
        forward = task.forward_model(chain.seed)
        if forward is not task.model:
            module = forward.module.requires_grad_(False)
            # Copies, since parts that a library shares between places could not be written twice.
            state = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
            content = save(state, metadata={"format": "pt"})
            write_bytes(folder / "forward" / str(chain.seed) / "model.safetensors", content)
            chain.model = {**describe(forward), "fine_tuned": {"sha256": hashlib.sha256(content).hexdigest()}}
        chain.eval().requires_grad_(False)
        chain.folder = chain.save(folder / "chains" / str(chain.seed))


# ---- how good they are


def measure(task: Task, batches: Batches, mean_image: Tensor, gather: Gather) -> tuple[Result, TrainingRange | None]:
    """The errors of all seeds (:func:`~backsight.evaluation.evaluate`), each on the features of its own forward model,
    and the scores of the forward models; and the range of these images, where all seeds share the forward model."""
    parts, recorders = [], []
    for model, chains in _by_forward_model(task):
        ensemble = ChainEnsemble(chains)
        recorders.append(Recorder(model, ensemble))
        parts.append(evaluate(model, ensemble, batches(), mean_image, gather=gather, invert=recorders[-1]))
    recorded = [each for part in gather(recorders[0].parts) for each in part] if len(recorders) == 1 else []
    known = TrainingRange.of(Measured.joined(recorded)) if recorded else None
    result = join_seeds(parts)
    scores = [
        Measurement({"model": task.model.name, "metric": name}, values)
        for name, values in score(task, batches, gather).items()
    ]
    return replace(result, measurements=[*result.measurements, *scores]), known


def score(task: Task, batches: Batches, gather: Gather) -> dict[str, Tensor]:
    """``accuracy`` or ``AP`` as :func:`~backsight.evaluation.task_scores` has it, a row for each seed, or one for all
    where they share the forward model.

    Nothing where the model or the data has no answers, and of a model that was never trained.
    """
    models = [model for model, _ in _by_forward_model(task)]
    if models == [task.model] and task.model.weights == RANDOM:
        return {}
    found = [task_scores(model, batches(), gather) for model in models]
    known = [name for name in (ACCURACY, PRECISION) if all(name in each for each in found)]
    values = {name: torch.cat([each[name] for each in found]) for name in known}
    return {name: each for name, each in values.items() if each.isfinite().any()}


def score_by_seed(task: Task, batches: Batches, gather: Gather) -> dict[str, list[float]]:
    """:func:`score`, a mean over images for each of its rows."""
    return {name: values.nanmean(1).tolist() for name, values in score(task, batches, gather).items()}


def _by_forward_model(task: Task) -> Iterator[tuple[StagedModel, list[InverseChain]]]:
    """Every forward model with the chains that invert it."""
    if all(task.forward_model(chain.seed) is task.model for chain in task.chains):
        yield task.model, task.chains
        return
    for chain in task.chains:
        yield task.forward_model(chain.seed), [chain]


# ---- the card


def task_in_words(facts: Mapping[str, Any]) -> str:
    """``joint, lambda 0.9, update chain, from decoder``."""
    parts = {"trade_off": "lambda", "update": "update", "stage": "from", "begins_with": "begun with the inverses of"}
    words = [f"{part} {facts[name]}" for name, part in parts.items() if facts.get(name) is not None]
    return ", ".join([facts["task"], *words])


def write_card(result: Result) -> str:
    """A page of Markdown: the facts of the run, then the errors of every stage on its test images."""
    facts = result.subjects[0]["training"]
    lines = [f"# Inverses of {facts['model']}", ""]
    if facts["weights"] == RANDOM:
        lines += ["**Random weights: this run shows that the method works, not what a trained model knows.**", ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()]
    for name in (ACCURACY, PRECISION):
        for each in result.select(metric=name):
            values = ", ".join(f"{value:.3f}" for value in each.values.nanmean(1).tolist())
            lines.append(f"- {name} of the forward model on the test images: {values}")
    return "\n".join([*lines, "", markdown_table(result)]) + "\n"

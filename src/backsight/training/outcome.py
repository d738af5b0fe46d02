"""What is left of a run's training: chains, the forward models trained with them, their errors and performance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from backsight.chain import ChainEnsemble, InverseChain, describe
from backsight.data import Batch
from backsight.engine import RANDOM, StagedModel
from backsight.evaluation import Evaluation, evaluate, join_seeds
from backsight.io import write_bytes
from backsight.tasks import Task, performance

Batches = Callable[[], Iterable[Batch]]
"""The same images every time that it is called."""

Gather = Callable[[Any], list[Any]]
"""What one process has found on its part of the images -> what all have, in their order."""


def save_models(task: Task, folder: Path) -> None:
    """Write every chain into ``folder/chains/<seed>``, a forward model of its own into ``folder/forward/<seed>``."""
    for chain in task.chains:
        forward = task.forward_model(chain.seed)
        if forward is not task.model:
            forward.module.requires_grad_(False)
            sha256 = _save_forward(forward, folder / "forward" / str(chain.seed))
            chain.model = {**describe(forward), "fine_tuned": {"sha256": sha256}}
        chain.eval().requires_grad_(False)
        chain.folder = chain.save(folder / "chains" / str(chain.seed))


def _save_forward(model: StagedModel, folder: Path) -> str:
    """Write ``model.safetensors``; returns its SHA-256."""
    # Copies, since parts that a library shares between places could not be written twice.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.module.state_dict().items()}
    content = save(state, metadata={"format": "pt"})
    write_bytes(folder / "model.safetensors", content)
    return hashlib.sha256(content).hexdigest()


def measure(task: Task, batches: Batches, mean_image: Tensor, gather: Gather) -> Evaluation:
    """The errors of all seeds (:func:`~backsight.evaluation.evaluate`), each on the features of its own model."""
    parts = [
        evaluate(model, ChainEnsemble(chains), batches(), mean_image, gather=gather)
        for model, chains in _by_forward_model(task)
    ]
    return join_seeds(parts)


def measure_performance(task: Task, batches: Batches, gather: Gather) -> dict[str, list[float]]:
    """``AP`` or ``accuracy``, by name a number for each seed, one for all where they share the forward model.

    Nothing where the model or the data has no answers, and of a model that was never trained.
    """
    models = [model for model, _ in _by_forward_model(task)]
    if models == [task.model] and task.model.weights == RANDOM:
        return {}
    found = [performance(model, batches(), gather) for model in models]
    return {name: [each[name] for each in found] for name in found[0] if all(name in each for each in found)}


def _by_forward_model(task: Task) -> Iterator[tuple[StagedModel, list[InverseChain]]]:
    """Every forward model with the chains that invert it."""
    if all(task.forward_model(chain.seed) is task.model for chain in task.chains):
        yield task.model, task.chains
        return
    for chain in task.chains:
        yield task.forward_model(chain.seed), [chain]

"""Processes for the tests: several that know of each other, as torchrun starts them, or some to be killed."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from backsight.chain import ChainEnsemble
from backsight.cli import main
from backsight.engine import RANDOM, StagedModel
from backsight.models import MODELS, stage_module
from backsight.options import ModelOptions, TrainOptions
from backsight.training import train_run
from small import small_pixels

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("accelerate", "backsight.cli.main", "backsight.training", "backsight.models", "timm", "torchmetrics"),
        *("transformers", "transformers.models.detr.modeling_detr"),
    ]
)
"""Imports once what all processes need; forks of the tests' own process could not use autograd after it has."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    rank: int, count: int, port: int, said: Path, work: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    """One of ``count`` processes, as torchrun starts them; what it says goes to the file ``said``."""
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in environment.items()}})
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    torch.set_num_threads(1)
    work(rank, *arguments)


def together(count: int, said: Path, work: Callable[..., object], *arguments: Any) -> list[BaseProcess]:
    """Start ``work(rank, *arguments)`` in ``count`` processes that know of each other."""
    port = free_port()
    whole = [SERVER.Process(target=start, args=(rank, count, port, said, work, arguments)) for rank in range(count)]
    for process in whole:
        process.start()
    return whole


def codes(processes: Sequence[BaseProcess], said: Path, limit: float = 150) -> list[int | None]:
    """How they have ended."""
    deadline = time.monotonic() + limit
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    found = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert None not in found, ("a process hangs", said.read_text())
    return found


def forward_model(family: str = "vit") -> StagedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = MODELS[family].small()
    return stage_module(module, MODELS[family], small_pixels(MODELS[family], module), name="small", weights=RANDOM)


def options(out: Path, **changes: object) -> TrainOptions:
    small = {"steps": 6, "seeds": 1, "batch_size": 5, "max_validation": 7, "max_test": 9, "workers": 0}
    return TrainOptions(**{"data": "world:prior", "out": out, "evaluate_every": 3, **small, **changes})


def train(model: StagedModel, out: Path, **changes: object) -> ChainEnsemble:
    return train_run(model, options(out, **changes), ModelOptions(device="cpu"))


def command(rank: int, family: str, out: Path, changes: Mapping[str, Any]) -> None:
    """``backsight train`` with a small model, as the command line runs it."""
    model, module = forward_model(family), sys.modules["backsight.cli.main"]
    module.run_command = lambda arguments: train(model, out, **changes)
    main([])


def lines(said: Path) -> list[str]:
    return [line for line in said.read_text().splitlines() if line.startswith("backsight:")]


def same(one: ChainEnsemble, other: ChainEnsemble) -> bool:
    """Two ensembles have the same weights, bit for bit."""
    ours, theirs = ([chain.state_dict() for chain in each.chains] for each in (one, other))
    return len(ours) == len(theirs) and all(
        mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)
        for mine, others in zip(ours, theirs, strict=True)
    )

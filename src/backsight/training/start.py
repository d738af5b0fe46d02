"""Where a run starts: a model and options come in, trained chains go out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Literal

from backsight.chain import ChainEnsemble
from backsight.core import Fit, UserError
from backsight.data import check_data
from backsight.devices import choose_device
from backsight.engine import StagedModel
from backsight.metrics import expect_measurable
from backsight.models import load_model
from backsight.options import ModelOptions, Precision, TaskName, TrainOptions, Update, parse_size
from backsight.training.distributed import joined
from backsight.training.folder import RunFolder
from backsight.training.run import Run
from backsight.training.signals import Interrupted, StopRequested, stop_signals
from backsight.training.tracking import ProgressLine, Tracker


def train(
    model: StagedModel | str,
    *,
    data: str = "world",
    out: str | Path = "runs/backsight",
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    task: TaskName = "modular",
    trade_off: float | None = None,
    update: Update | None = None,
    stage: str | None = None,
    forward_learning_rate: float | None = None,
    learning_rate: float | None = None,
    chain: str | None = None,
    seeds: int = 3,
    seed: int = 0,
    batch_size: int = 32,
    inverse: Sequence[str] = (),
    precision: Precision = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    micro_batch: int | None = None,
    memory: str | None = None,
    feature_cache: str | Path | None = None,
    feature_cache_gb: float = 50.0,
    image_cache: str | Path | None = None,
    image_cache_gb: float = 50.0,
    workers: int = 2,
    evaluate_every: int | None = None,
    checkpoint_every: float = 5.0,
    keep_checkpoints: int = 2,
    max_validation: int = 512,
    max_test: int = 2000,
    strict: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    tracker: Literal["tensorboard", "trackio", "wandb", "none"] = "tensorboard",
    size: str | None = None,
    weights: str | Path | None = None,
    random_weights: bool = False,
    device: str = "auto",
    spec: str | Path | None = None,
    fit: Fit | None = None,
) -> ChainEnsemble:
    """Train every inverse of ``model`` (a staged one, or what :func:`~backsight.load_model` takes), all stages and
    seeds in one pass of the forward model over the images. The arguments are the fields of
    :class:`~backsight.options.TrainOptions`, and of :class:`~backsight.options.ModelOptions` for a model that is named.

    Returns the chains with their best weights on the validation images; ``out`` holds the same.

    Raises:
        UserError: a mistake that the user can correct, in one line.
        Interrupted: Ctrl-C or SIGTERM; the run can be resumed.
    """
    given = locals()
    options = TrainOptions(**{each.name: given[each.name] for each in fields(TrainOptions)})
    return train_run(model, options, ModelOptions(**{each.name: given[each.name] for each in fields(ModelOptions)}))


def train_run(
    model: StagedModel | str, options: TrainOptions, model_options: ModelOptions | None = None
) -> ChainEnsemble:
    """:func:`train` with its options in two objects, as the command line has them."""
    model_options = model_options or ModelOptions()
    with joined(model_options.device) as processes:
        check_data(options.data)
        if options.task == "joint" and processes.count > 1:
            raise UserError("joint training runs in one process: start it without torchrun")
        if (options.micro_batch or options.memory) and processes.count > 1:
            raise UserError("--micro-batch and --memory are for one process: of several, each has a part of the batch")
        folder = RunFolder(options.out, keep=options.keep_checkpoints, writes=processes.main)
        processes.from_main(lambda: _check_folder(folder, options))
        device = choose_device(model_options.device)
        model = (open_model(model, model_options) if isinstance(model, str) else model).to(device)
        expect_measurable(model.pixels.size)
        run = Run.of(model, options, folder, processes)
        return _train(run)


def _check_folder(folder: RunFolder, options: TrainOptions) -> None:
    folder.check_free()
    folder.check(resume=options.resume, overwrite=options.overwrite)


def _train(run: Run) -> ChainEnsemble:
    """From the first batch to the card, in the process that shows and tracks it or in one beside it."""
    options = run.options
    tracker = options.tracker if run.processes.main else "none"
    with stop_signals() as run.signals, ExitStack() as stack:
        with ProgressLine(run.task.covers) as progress, Tracker(tracker, run.folder.path) as curves:
            loop = run.loop()
            # Only now: whatever can be refused has been, and a run that is replaced was still there.
            claimed = run.folder.claimed(resume=options.resume, overwrite=options.overwrite)
            run.processes.from_main(lambda: stack.enter_context(claimed))
            loop.watchers = [progress.show, curves.log] if run.processes.main else []
            run.begin(loop)
            state = loop.run()
        try:
            return run.finish(state)
        except StopRequested as stop:
            raise Interrupted(stop.number, state.step) from None


def open_model(name: str, options: ModelOptions) -> StagedModel:
    """The model that a user names, with the options of a command."""
    size, device = parse_size(options.size), choose_device(options.device)
    given = {"weights": options.weights, "random_weights": options.random_weights, "spec": options.spec}
    return load_model(name, size=size, device=device, **given).fitting(options.fit)

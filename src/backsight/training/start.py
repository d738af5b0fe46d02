"""Where a run starts: a model and options come in, trained chains go out."""

from __future__ import annotations

import difflib
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

from backsight.chain import ChainEnsemble
from backsight.core import UserError
from backsight.data import check_data
from backsight.devices import choose_device
from backsight.engine import StagedModel
from backsight.metrics import expect_measurable
from backsight.models import load_model
from backsight.options import ModelOptions, TrainOptions, parse_size
from backsight.tasks import check_choice
from backsight.training.distributed import joined
from backsight.training.folder import RunFolder
from backsight.training.numbers import check_numbers, check_stream
from backsight.training.run import Run
from backsight.training.saving import check_saving
from backsight.training.signals import Interrupted, StopRequested, stop_signals
from backsight.training.tracking import ProgressLine, Tracker


def train(model: StagedModel | str, **options: Any) -> ChainEnsemble:
    """Train every inverse of ``model``, all stages and seeds in one pass of the forward model over the images.

    Args:
        model: a staged model, or what :func:`~backsight.models.load_model` takes.
        options: the fields of :class:`~backsight.options.TrainOptions`, and, where ``model`` is a name, of
            :class:`~backsight.options.ModelOptions`.

    Returns:
        The trained chains, at their best weights on the validation images. The run's folder holds the same.

    Raises:
        UserError: anything that the user can mend, in one line.
        Interrupted: Ctrl-C or SIGTERM; the run can be resumed.
    """
    known = [each.name for each in (*fields(TrainOptions), *fields(ModelOptions))]
    for name in options.keys() - set(known):
        close = difflib.get_close_matches(name, known, n=1)
        raise UserError(f"train has no option '{name}'" + (f": did you mean '{close[0]}'?" if close else ""))
    of_model = {each.name: options.pop(each.name) for each in fields(ModelOptions) if each.name in options}
    return train_run(model, TrainOptions(**options), ModelOptions(**of_model))


def train_run(
    model: StagedModel | str, options: TrainOptions, model_options: ModelOptions | None = None
) -> ChainEnsemble:
    """:func:`train` with its options in two objects, as the command line has them."""
    model_options = model_options or ModelOptions()
    with joined(model_options.device) as processes:
        _check(options)
        check_choice(options)
        if options.task == "joint" and processes.count > 1:
            raise UserError("joint training runs in one process: start it without torchrun")
        if (options.micro_batch or options.memory) and processes.count > 1:
            raise UserError("--micro-batch and --memory are for one process: of several, each has a part of the batch")
        check_saving(options)
        check_stream(options)
        folder = RunFolder(options.out, keep=options.keep_checkpoints, writes=processes.main)
        processes.from_main(lambda: _check_folder(folder, options))
        device = choose_device(model_options.device)
        model = (open_model(model, model_options) if isinstance(model, str) else model).to(device)
        expect_measurable(model.pixels.size)
        run = Run.of(model, options, folder, processes)
        return _train(run)


def _train(run: Run) -> ChainEnsemble:
    """From the first batch to the card, in the process that shows and tracks it or in one beside it."""
    tracker = run.options.tracker if run.processes.main else "none"
    with stop_signals() as run.signals, ExitStack() as held:
        with ProgressLine(run.task.covers) as progress, Tracker(tracker, run.folder.path) as curves:
            loop = run.loop()
            # Only now: whatever can be refused has been, and a run that is replaced was still there.
            run.processes.from_main(lambda: _claim(run, held))
            loop.watchers = [progress.show, curves.log] if run.processes.main else []
            run.begin(loop)
            state = loop.run()
        try:
            return run.finish(state)
        except StopRequested as stop:
            raise Interrupted(stop.number, state.step) from None


def _claim(run: Run, held: ExitStack) -> None:
    held.enter_context(run.folder.claimed(resume=run.options.resume, overwrite=run.options.overwrite))


def _check_folder(folder: RunFolder, options: TrainOptions) -> None:
    folder.check_free()
    folder.check(resume=options.resume, overwrite=options.overwrite)


def open_model(name: str, options: ModelOptions) -> StagedModel:
    """The model that a user names, with the options of a command."""
    size, device = read_size(options.size), choose_device(options.device)
    given = {"weights": options.weights, "random_weights": options.random_weights, "spec": options.spec}
    return load_model(name, size=size, device=device, **given).fitting(options.fit)


def read_size(text: str | None) -> tuple[int, int] | None:
    """The (H, W) of an option such as ``384x512``.

    Raises:
        UserError: it is none.
    """
    try:
        return parse_size(text)
    except ValueError as error:
        raise UserError(str(error)) from error


def _check(options: TrainOptions) -> None:
    check_numbers(options)
    check_data(options.data)
    if options.resume and options.overwrite:
        raise UserError("--resume goes on with a run and --overwrite replaces it: give one of them")

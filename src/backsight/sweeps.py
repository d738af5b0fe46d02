"""The comparison of the paper's section 4.2: modular, classic, and joint training at every trade-off, one figure."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from backsight.core import UserError
from backsight.distributed import is_main
from backsight.engine import StagedModel
from backsight.experiments import EXPERIMENTS, run_experiment
from backsight.jobs import run_jobs
from backsight.options import ModelOptions, SweepOptions, TrainOptions
from backsight.report.experiments import write_experiments_report
from backsight.training import RunFolder, command, train_run

logger: logging.Logger = logging.getLogger(__name__)

FREE = ("out", "resume", "overwrite", "workers", "tracker", "checkpoint_every", "strict", "memory", "mirror")
FREE += ("keep_checkpoints",)
"""Options that a kept run may have had otherwise: they do not decide what it finds."""


def sweep(
    model: StagedModel | str,
    options: SweepOptions,
    model_options: ModelOptions | None = None,
) -> Path:
    """Train a model's inverses in every way, and set the runs side by side (paper, Fig. 6).

    A run that is finished is kept, one that is not goes on where it stopped: interrupted, the same call does the rest.

    Args:
        model: a staged model, or what :func:`~backsight.models.load_model` takes.
        options: of every run; ``out`` is the folder of all. ``update``, ``stage`` and ``forward_learning_rate`` go to
            the runs that they are for.
        model_options: how a model that is named is loaded.

    Returns:
        The page with the figure, in ``out/trade_off``; the runs are in ``out/modular``, ``out/classic`` and
        ``out/joint-0.9``.

    Raises:
        UserError: a value that cannot be meant, a run of other options in the way, or what training raises.
        Interrupted: Ctrl-C or SIGTERM.
    """
    runs, todo = options.runs(), dict[str, TrainOptions]()
    for name, each in runs.items():
        if _is_kept(model, each):
            logger.info("%s: done already", name)
        else:
            todo[name] = replace(each, resume=RunFolder(each.out).started and not each.overwrite)
    if options.jobs is not None:
        if not isinstance(model, str):
            raise UserError("jobs load the forward model themselves: give its name")
        run_jobs({name: partial(_job, model, each, model_options) for name, each in todo.items()}, options.out / "jobs")
    else:
        for name, each in todo.items():
            logger.info("%s", name)
            train_run(model, each, model_options)
    if is_main():
        out, settings = options.out / "trade_off", {"runs": [str(each.out) for each in runs.values()]}
        run_experiment(EXPERIMENTS["trade_off"], [], out, settings, command())
        return write_experiments_report(out)
    return options.out


def _job(model: str, options: TrainOptions, model_options: ModelOptions | None) -> None:
    train_run(model, options, model_options)  # whose chains nobody waits for


def _is_kept(model: StagedModel | str, options: TrainOptions) -> bool:
    """Whether the run is there and finished.

    Raises:
        UserError: it is another run.
    """
    folder = RunFolder(options.out)
    if options.overwrite or not folder.finished:
        return False
    before = folder.config()
    named = model if isinstance(model, str) else model.name
    asked = {"model": named, **json.loads(json.dumps(asdict(options), default=str))}
    had = {**asked, **before["options"], "model": before["model"]["name"]}
    for name, value in asked.items():
        if name not in FREE and had[name] != value:
            raise UserError(
                f"the run in {folder.path} was trained with {name} = {had[name]}, not {value}: add --overwrite to "
                "train all of them again, or choose another --out"
            )
    return True

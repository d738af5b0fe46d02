"""What a model gives up of its task for better reconstructions (paper, sec. 4.2 and Fig. 6)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backsight.core import UserError
from backsight.engine import RANDOM
from backsight.experiments.drawing import models_of, title_of
from backsight.experiments.run import Experiment
from backsight.figures import Pages, ScatterPoint, pages, scatter_part
from backsight.io import read_record
from backsight.results import MEAN_IMAGE, Label, Measurement, Result
from backsight.validation import Record

TASKS = ("modular", "classic", "joint")
"""The ways to train inverses; a run that does not say is modular."""

CHAIN, BACKWARDS_ONLY = "chain", "backwards-only"
"""How the reconstruction's loss reaches the forward model in joint training: by default, and not at all."""

OF_IMAGES = ("mse", "saturation")
"""What is read of the images that runs reconstruct; all else is of the model's task."""

PAPER = ("AP", "accuracy")
"""The performances that the figure shows, where runs know them."""


@dataclass(frozen=True)
class _Model(Record):
    name: str
    weights: str = ""


@dataclass(frozen=True)
class _Config(Record):
    """What is read of ``config.yaml``; a run that does not say how it updated the model, or its task, is of 0.1."""

    model: _Model | str
    task: str | None = None
    trade_off: float | None = None
    update: str | None = None


@dataclass(frozen=True)
class FinishedRun:
    """What is read of a run's folder: its ``task``, its ``trade_off`` (lambda) and ``update`` (None where it has none),
    its model's name and ``weights``, and what it measured on its test images."""

    path: Path
    task: str
    trade_off: float | None
    update: str | None
    model: str
    weights: str
    evaluation: Result

    @property
    def kind(self) -> tuple[str, float | None, str | None]:
        """What tells runs of one model apart."""
        return self.task, self.trade_off, self.update

    @property
    def entries(self) -> list[str]:
        """The entries that images were reconstructed from, in the order of the forward pass."""
        stages = [each.labels.get("stage") for each in self.evaluation.select(metric="mse")]
        return [str(stage) for stage in stages if stage != MEAN_IMAGE]

    @property
    def task_metrics(self) -> list[Measurement]:
        """How well the forward model does its task: what was measured of no stage."""
        return [each for each in self.evaluation.measurements if "stage" not in each.labels]

    @classmethod
    def read(cls, path: str | Path) -> FinishedRun:
        """Read ``config.yaml`` and ``evaluation.json``.

        Raises:
            UserError: there is no run, it is not finished, or it is of a task that this version does not know.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise UserError(f"no run in {path}: a run's folder holds config.yaml and evaluation.json")
        if not (path / "card.md").is_file() or not (path / "evaluation.json").is_file():
            raise UserError(f"the run in {path} has not finished: go on with it by --resume")
        try:
            config = read_record(path / "config.yaml", _Config, "restore it")
            evaluation = Result.load(path / "evaluation.json")
        except UserError as error:
            raise UserError(f"the run in {path} cannot be read ({error}), or train it again") from error
        task = config.task or "modular"
        if task not in TASKS:
            raise UserError(f"the run in {path} is of the task '{task}': known are {', '.join(TASKS)}")
        update = config.update or CHAIN if task == "joint" else None
        model = _Model(config.model) if isinstance(config.model, str) else config.model
        return cls(path, task, config.trade_off, update, model.name, model.weights, evaluation)


def compare_runs(runs: Sequence[str | Path] | str | Path = (), *, stage: str = "") -> Result:
    """The error of the image against the performance at the task, of runs that weigh them differently.

    The loss of joint training is lambda times the reconstruction's plus (1 - lambda) times the task's (paper, sec.
    4.2); classic inversion lets each inverse see the image error alone, modular inversion only its own component's.
    Reads what finished runs measured, and computes nothing.

    Labels: ``run`` (its folder's name), ``model``, ``task`` (``modular``, ``classic``, ``joint``), ``trade_off``
    (lambda, where the run has one), ``update`` (of joint training), ``stage``, ``metric``: ``mse`` and ``saturation``
    of the images, and whatever the run says of its task, ``AP`` or ``accuracy``. A value for each seed, one column:
    runs keep means over their test images.

    Args:
        runs: the folders of finished runs.
        stage: the entry that images are reconstructed from; by default the last that all runs of a model have,
            predictions aside (the decoder of DETR, the encoder of ViT: the paper's choice).

    Raises:
        UserError: no runs, one that is not finished, or none with this stage.
    """
    paths = [runs] if isinstance(runs, str | Path) else list(runs)
    if not paths:
        raise UserError("trade_off compares finished runs: give their folders as runs")
    found = [FinishedRun.read(path) for path in paths]
    measurements = []
    for model in dict.fromkeys(run.model for run in found):
        group = [run for run in found if run.model == model]
        entry = _stage_of(group, stage)
        measurements += [each for run in group for each in _values(run, entry, _names(found)[run.path])]
    settings = {"runs": [str(path) for path in paths], "stage": stage}
    return Result("trade_off", _cards(found), measurements, (), settings, _notes(found))


def _names(runs: Sequence[FinishedRun]) -> dict[Path, str]:
    """A run is called by its folder's name, or by its whole path where two have the same."""
    names = [run.path.resolve().name for run in runs]
    return {run.path: name if names.count(name) == 1 else str(run.path) for run, name in zip(runs, names, strict=True)}


def _stage_of(runs: Sequence[FinishedRun], wanted: str) -> str:
    shared = [entry for entry in runs[0].entries if all(entry in run.entries for run in runs)]
    if wanted and wanted in shared:
        return wanted
    fitting = [entry for entry in shared if not entry.startswith("prediction") and "@" not in entry]
    if wanted or not fitting:
        have = ", ".join(shared) or "nothing"
        raise UserError(f"the runs of {runs[0].model} do not all have '{wanted or 'a stage'}': they share {have}")
    return fitting[-1]


def _values(run: FinishedRun, entry: str, name: str) -> Iterator[Measurement]:
    labels: dict[str, Label] = {"run": name, "model": run.model, "task": run.task, "stage": entry}
    if run.trade_off is not None:
        labels["trade_off"] = run.trade_off
    if run.update is not None:
        labels["update"] = run.update
    of_images = [each for metric in OF_IMAGES for each in run.evaluation.select(stage=entry, metric=metric)]
    for each in [*of_images, *run.task_metrics]:
        means = torch.tensor(each.by_seed(), dtype=torch.float64)
        yield Measurement({**labels, "metric": each.labels["metric"]}, means.reshape(-1, 1))


def _cards(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """A card for every run, with the fields of a subject's."""
    shared = ("data", "data_fingerprint", "num_images", "value_range")
    return [
        {
            **{"run": str(run.path), "model": run.model, "weights": run.weights, "random": run.weights == RANDOM},
            **{name: run.evaluation.subjects[0].get(name, "") for name in shared},
            "seeds": list(run.evaluation.subjects[0]["seeds"]),
        }
        for run in runs
    ]


def _notes(runs: Sequence[FinishedRun]) -> list[str]:
    names = _names(runs)
    silent = [names[run.path] for run in runs if not run.task_metrics]
    notes = []
    if silent:
        notes = [f"no performance at the task is known of {', '.join(silent)}: drawn as lines at their error"]
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        kinds = Counter(run.kind for run in own)
        for kind in (kind for kind, count in kinds.items() if count > 1):
            alike = [names[run.path] for run in own if run.kind == kind]
            which = f"{kind[0]} runs" + ("" if kind[1] is None else f" with lambda {kind[1]:g}")
            notes.append(f"{' and '.join(alike)} are all {which} of {model}: claims cannot tell which one is meant")
        cards = _cards(own)
        if len({(card["data_fingerprint"], card["num_images"]) for card in cards}) > 1:
            notes.append(f"the runs of {model} were not measured on the same images: their errors do not compare")
    return notes


# ---- the figure


def draw(result: Result) -> Pages:
    """A panel for each model: the error against AP or accuracy, lambda written at each point; runs without a known
    performance are dashed lines at their error."""
    panels = {}
    for model in models_of(result):
        for metric in task_metrics(result, model) or [""]:
            stage = result.select(model=model, metric="mse")[0].labels["stage"]
            points = [_point(result, each, metric) for each in result.select(model=model, metric="mse")]
            panels[f"{title_of(result, model)}, from {stage}", metric or "performance at the task (not known)"] = points
    return pages([scatter_part(panels, "MSE of the image, RGB in [0, 1]")])


def task_metrics(result: Result, model: str) -> list[str]:
    """AP or accuracy, as the paper has it; whatever else there is where both are missing."""
    metrics = dict.fromkeys(str(each.labels["metric"]) for each in result.select(model=model))
    return [name for name in PAPER if name in metrics] or [name for name in metrics if name not in OF_IMAGES]


def _point(result: Result, error: Measurement, metric: str) -> ScatterPoint:
    labels = error.labels
    across = [each.mean() for each in result.select(run=labels["run"], model=labels["model"], metric=metric)]
    weight = f"λ = {labels['trade_off']:g}" if "trade_off" in labels else ""
    text = weight if labels["task"] == "joint" else f"{labels['task']} {weight}".strip()
    updates = {each.labels.get("update", CHAIN) for each in result.select(model=labels["model"], task="joint")}
    kind = f"joint, {labels['update']}" if "update" in labels and len(updates) > 1 else str(labels["task"])
    return ScatterPoint(kind, text, across[0] if across else math.nan, error.values[:, 0].tolist())


TRADE_OFF = Experiment(
    "trade_off",
    "What does a better reconstruction cost the task?",
    compare_runs,
    draw,
    compares_runs=True,
    controlled=False,
    reading=(
        "The task score against the error of reconstruction, a point for each run. Compare runs on the same data and "
        "length only; seeds show how much is chance."
    ),
)

"""All experiments on all models that they fit, the claims that they decide on, and the page that shows both."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from backsight.core import UserError
from backsight.distributed import Processes, joined
from backsight.experiments import EXPERIMENTS, Experiment, Result, Subject, find_experiment, run_experiment
from backsight.experiments.claims import CLAIMS, judge, save_claims
from backsight.experiments.controls import controls_of
from backsight.experiments.run import check_settings, read_settings
from backsight.experiments.subject import NUM_IMAGES, has_chains, open_subject
from backsight.experiments.trade_off import FinishedRun
from backsight.io import write_json, write_text
from backsight.jobs import run_jobs
from backsight.report.claims import write_paper
from backsight.report.experiments import FORMAT, Step, write_experiments_report
from backsight.shipped import FLOWS, find_shipped, shipped_names
from backsight.training import command
from backsight.validation import check_folder

logger: logging.Logger = logging.getLogger(__name__)

MODELS = ("zoo/detr-prior", "zoo/vit-prior")
"""The models that are used unless some are named. The experiments of :data:`ON_ALL` use all that ship with chains."""

ON_ALL = ("truth", "ambiguity", "detection_errors")

ON_SHARED = ("reconstruct", "stage_error")
"""What is done with all models on the same images, those of the first: the paper sets models side by side there."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "reconstruct": {"num_pictures": 4},
    "attention_ablation": {"steps": 150},
    "truth": {"num_scenes": 100, "num_training": 500},
}
"""Where an experiment's own defaults take long, or fill the page: all of it is to take half an hour on two cores."""

SHIPPED_SETTINGS: Mapping[str, Mapping[str, Any]] = {"detection_errors": {"among": 2_000, "threshold": 0.3}}
"""The same, for the models that are used unless some are named: these detectors hardly ever err."""

DRAWN = 24
"""Images, at most, that draws are taken of by shipped inverses: 19 of each, from every stage, are seen again."""

REQUEST = "asked.json"
"""What a result in the folder answers; written last, so that it is there only beside a whole result."""

FILES = ("result.json", "table.csv", "figure.png", "figure.pdf", REQUEST)
"""What an experiment that is done leaves in its folder."""

TRACEBACK = "error.txt"
"""What one that broke off leaves there: where in the program."""


class BrokeOff(Exception):
    """Some experiments ended in an error that is not the user's; the others are done, and the page is written."""


@dataclass(frozen=True)
class Choice:
    """A subject as :func:`~backsight.experiments.subject.open_subject` takes it, None for its default; ``most`` images
    at most."""

    model: str | None = None
    chain: str | None = None
    data: str | None = None
    stretch: bool = False
    most: int | None = None


def experiment(
    name: str,
    out: str | Path | None = None,
    *,
    models: Sequence[str] = (),
    chains: Sequence[str | Path] = (),
    data: Sequence[str] = (),
    images: int | None = NUM_IMAGES,
    settings: Sequence[str] | Mapping[str, Any] = (),
    device: str = "auto",
) -> Result:
    """Do one experiment, and leave ``result.json``, ``table.csv``, ``figure.png``, ``figure.pdf`` and ``report.html``.

    Args:
        name: of the experiment, see :data:`~backsight.experiments.EXPERIMENTS`.
        out: the folder, ``experiments/NAME`` by default; what an earlier call wrote there is replaced.
        models: the forward models' names; by default those that the chains were trained on.
        chains: for each of them a run, one chain, or a name; those that ship with the model by default.
        data: one for all, or one for each; what the chains were trained on by default.
        images: how many test images; None for all.
        settings: of the experiment, as ``{"num_pictures": 3}`` or ``["num_pictures=3"]``.
        device: where to compute.

    Raises:
        UserError: no such experiment or setting, or a model or data that it cannot be done with.
    """
    chosen = find_experiment(name)
    out = Path(out or Path("experiments", name))
    check_folder(out, "--out")
    names = ("report.html", "figure.pdf", "figure.png", "table.csv")
    foreign = next((name for name in names if (out / name).exists()), None)
    if foreign and not (out / "result.json").exists():
        raise UserError(f"{out} has a '{foreign}' that no experiment wrote: choose another --out")
    values = dict(settings) if isinstance(settings, Mapping) else read_settings(chosen.measure, settings)
    if chosen.compares_runs and not values.get("runs"):
        raise UserError(f"{name} compares finished runs: give their folders as runs (--set 'runs=[a,b]')")
    choices = choose(models, chains, data)
    if not choices and not chosen.compares_runs:
        raise UserError(f"{name} needs models: name some, as zoo/detr-prior, or their chains by --chain")
    with joined(device) as processes:
        subjects = [_open(choice, images, device, processes) for choice in choices]
        result = run_experiment(chosen, subjects, out, values, command())
        processes.from_main(lambda: write_experiments_report(out))
    return result


def reproduce(
    out: str | Path = "reproduction",
    *,
    models: Sequence[str] = (),
    chains: Sequence[str | Path] = (),
    data: Sequence[str] = (),
    images: int | None = NUM_IMAGES,
    experiments: Sequence[str] | None = None,
    runs: Sequence[str | Path] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "auto",
    jobs: Literal["submitit"] | None = None,
) -> Path:
    """Do all experiments on all models that they fit, test the claims, and write the page.

    A result that is already in the folder is kept if nothing changed: the model, its chains, the images, the settings
    and the version. If an experiment cannot be done, the log says so, and the rest goes on. What is measured of a
    model is measured of its controls as well. ``docs/claims.md`` lists the files.

    Args:
        out: the folder.
        models: the forward models' names; by default :data:`MODELS`, and for :data:`ON_ALL` all that ship with chains.
        chains: for each of them a run, one chain, or a name; those that ship with the model by default.
        data: one for all, or one for each; what the chains were trained on by default.
        images: how many test images; None for all.
        experiments: the names of some; all by default. What the folder holds of others is shown as it is.
        runs: finished runs, for ``trade_off``; by default those whose tables ship with the models.
        settings: of experiments by name, in place of :data:`SETTINGS`, :data:`SHIPPED_SETTINGS` and their own.
        device: where to compute.
        jobs: do each experiment as a job of its own, on Slurm or this machine.

    Returns:
        The page.

    Raises:
        UserError: a name or a run that there is not, a model that cannot be opened, or no experiment could be done.
        BrokeOff: once all else is done, an experiment had ended in an error that is not the user's.
    """
    out = Path(out)
    check_folder(out, "--out")
    chosen = [find_experiment(name) for name in experiments or EXPERIMENTS]
    named = bool(models or chains)
    values = _settings(settings or {}, runs or (() if named else shipped_runs()), {} if named else SHIPPED_SETTINGS)
    if jobs is not None:
        same = {"models": models, "chains": chains, "data": data, "images": images, "runs": runs, "device": device}
        _run_as_jobs(chosen, out, {**same, "settings": settings})
    choices = choose(models if named else MODELS, chains, data)
    on_all = choices if named or data else [*choices, *_other_shipped()]
    with joined(device) as processes:
        open_once = cache(lambda choice: _open(choice, images, device, processes))
        control_once = cache(lambda subject: list(controls_of(subject)))
        steps: list[Step] = []
        for number, each in enumerate(chosen, 1):
            own = _choices_of(each, on_all if each.name in ON_ALL else choices, data, open_once)
            subjects = [open_once(choice) for choice in own]
            steps.append(_do(each, subjects, values[each.name], out / each.name, processes, control_once))
            logger.info("[%d/%d] %s", number, len(chosen), steps[-1].message)
        page = processes.from_main(lambda: _conclude(steps, out))
    _expect_done(steps, page)
    return page


def _expect_done(steps: Sequence[Step], page: Path) -> None:
    if broken := [step for step in steps if step.broke]:
        which = "; ".join(f"{step.experiment} broke off ({step.reason})" for step in broken)
        raise BrokeOff(f"{which}: see {TRACEBACK} in its folder; all else is in {page}")
    if all(step.reason for step in steps):
        raise UserError(f"no experiment could be done: {'; '.join(dict.fromkeys(step.reason for step in steps))}")


def _run_as_jobs(chosen: Sequence[Experiment], out: Path, given: Mapping[str, Any]) -> None:
    calls = {each.name: partial(_job, out, experiments=[each.name], **given) for each in chosen}
    run_jobs(calls, out / "jobs")


def _job(out: Path, **options: Any) -> None:
    """One experiment of :func:`reproduce`; whatever becomes of it the page will say."""
    with suppress(UserError, BrokeOff):
        reproduce(out, **options)


# ---- what was requested


def choose(models: Sequence[str], chains: Sequence[str | Path], data: Sequence[str]) -> list[Choice]:
    """One for each model, or for each chain where no model is named.

    >>> choose(["zoo/detr-prior"], [], ["world"])
    [Choice(model='zoo/detr-prior', chain=None, data='world', stretch=False, most=None)]

    Args:
        models: their names.
        chains: none, or one for each.
        data: none, one for all, or one for each.

    Raises:
        UserError: their numbers do not fit.
    """
    num = len(models) or len(chains)
    if len(chains) not in (0, num):
        raise UserError(f"{len(models)} models and {len(chains)} chains: name a chain for each model, or none")
    if len(data) not in (0, 1, num):
        raise UserError(f"{num} models and {len(data)} data: name one for all, one for each, or none")
    every_model = list(models) or [None] * num
    every_chain = [str(chain) for chain in chains] or [None] * num
    every_data = list(data) * num if len(data) == 1 else list(data) or [None] * num
    return [Choice(*row) for row in zip(every_model, every_chain, every_data, strict=True)]


def read_all_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``["truth.num_scenes=200"]`` -> the settings of each experiment that is named.

    Raises:
        UserError: no such experiment or setting, or a value of another type.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, dot, setting = text.partition(".")
        if not dot or "=" in name:
            raise UserError(f"'{text}' is no setting: write EXPERIMENT.NAME=VALUE, as truth.num_scenes=200")
        found.setdefault(name, []).append(setting)
    return {name: read_settings(find_experiment(name).measure, own) for name, own in found.items()}


def _settings(
    given: Mapping[str, Mapping[str, Any]], runs: Sequence[str | Path], more: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Those of every experiment, checked."""
    for name in given:
        find_experiment(name)
    # `DIR/*/` of a sweep names the figure of its runs too, which is no run.
    finished = [str(run) for run in runs if Path(run).name != "trade_off" or not Path(run, "result.json").is_file()]
    defaults = {**SETTINGS, **more, "trade_off": {"runs": finished}}
    values = {
        name: check_settings(each.measure, {**defaults.get(name, {}), **given.get(name, {})})
        for name, each in EXPERIMENTS.items()
    }
    for run in values["trade_off"]["runs"]:
        FinishedRun.read(run)  # before an hour of others
    return values


def _other_shipped() -> list[Choice]:
    """The models beside :data:`MODELS` that ship with chains."""
    folders = {name: find_shipped(name) for name in shipped_names(drawn=True) if name not in MODELS}
    return [Choice(name) for name, folder in folders.items() if folder is not None and has_chains(folder)]


def _choices_of(
    experiment: Experiment, choices: Sequence[Choice], data: Sequence[str], open_once: Callable[[Choice], Subject]
) -> Sequence[Choice]:
    """The choices that an experiment is done with: none where it compares runs; with the inverses that sample where it
    takes draws, and they ship beside the others; with the same images for all where it sets models side by side, unless
    data is named for each."""
    if experiment.compares_runs:
        return []
    if experiment.samples:
        return [_sampling(choice) for choice in choices]
    if experiment.name not in ON_SHARED or len(choices) < 2 or len(data) > 1:
        return choices
    shared = data[0] if data else open_once(choices[0]).data.name
    return [replace(choice, data=shared, stretch=True) for choice in choices]


def _sampling(choice: Choice) -> Choice:
    """The shipped inverses that sample, where others are not named."""
    folder = None if choice.chain or not choice.model else find_shipped(choice.model)
    if folder is None or not (folder / FLOWS).is_dir():
        return choice
    return replace(choice, chain=f"{choice.model}/{FLOWS}", most=DRAWN)


def shipped_runs() -> list[Path]:
    """The runs of :data:`MODELS` whose tables ship with the package (no weights): modular, classic, and joint ones."""
    folders = [find_shipped(name) for name in MODELS if name in shipped_names()]
    return [path.parent for folder in folders if folder for path in sorted(folder.glob("runs/*/evaluation.json"))]


def _open(choice: Choice, images: int | None, device: str, processes: Processes) -> Subject:
    counts = [each for each in (images, choice.most) if each is not None]
    given = {
        "num_images": min(counts, default=None),
        "device": device,
        "processes": processes,
        "stretch": choice.stretch,
    }
    return open_subject(choice.model, choice.chain, choice.data, **given)


# ---- one experiment


def _do(
    experiment: Experiment,
    subjects: Sequence[Subject],
    settings: Mapping[str, Any],
    folder: Path,
    processes: Processes,
    controls: Callable[[Subject], Sequence[Subject]],
) -> Step:
    """Measure, on the subjects and their controls, or keep what is there."""
    started = time.monotonic()
    reasons = [experiment.fits(subject) for subject in subjects]  # why not; empty where it does
    fitting = [subject for subject, reason in zip(subjects, reasons, strict=True) if not reason]
    if subjects and not fitting:
        return Step(experiment.name, 0.0, reason="; ".join(reasons))
    request = _request(experiment, fitting, settings)
    if processes.from_main(lambda: _is_whole(folder) and _read_request(folder) == request):
        return Step(experiment.name, 0.0, kept=True)
    if experiment.controlled:
        seen = [experiment.narrow(each, **settings) if experiment.narrow else each for each in fitting]
        fitting += [control for subject in seen for control in controls(subject)]
    if processes.main:
        (folder / REQUEST).unlink(missing_ok=True)
    try:
        run_experiment(experiment, fitting, folder, settings, command())
    except UserError as error:
        return Step(experiment.name, time.monotonic() - started, reason=str(error))
    except Exception as error:  # whatever it is, it is of this experiment: the others can still be done
        if processes.main:
            write_text(folder / TRACEBACK, traceback.format_exc())
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Step(experiment.name, time.monotonic() - started, reason=reason, broke=True)
    if processes.main:
        write_json(folder / REQUEST, request)
        (folder / TRACEBACK).unlink(missing_ok=True)
    return Step(experiment.name, time.monotonic() - started)


def _request(experiment: Experiment, subjects: Sequence[Subject], settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that a result depends on; controls follow from their subjects."""
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise UserError(f"two of {', '.join(names)} have one name: results are kept by it, so do them in two folders")
    runs = [Path(run, "evaluation.json") for run in settings.get("runs", ())]
    request = {
        "version": version("backsight"),
        "experiment": experiment.name,
        "settings": dict(settings),
        "subjects": [{**subject.card(), "chains": _digest(subject)} for subject in subjects],
        "runs": [hashlib.sha256(path.read_bytes()).hexdigest() for path in runs if path.is_file()],
    }
    return json.loads(json.dumps(request))  # tuples are lists in a file


def _digest(subject: Subject) -> str:
    """SHA-256 of all weights of the chains, and of the mean image that their errors are held against."""
    total = hashlib.sha256(subject.mean_image.cpu().numpy().tobytes())
    for chain in subject.ensemble.chains:
        for name, value in sorted(chain.state_dict().items()):
            total.update(name.encode() + value.detach().cpu().contiguous().flatten().numpy().tobytes())
    return total.hexdigest()


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _read_request(folder: Path) -> Any:
    with suppress(ValueError):  # a damaged file says nothing: the experiment is done again
        return json.loads((folder / REQUEST).read_text(encoding="utf-8"))


# ---- the end


def _conclude(steps: Sequence[Step], out: Path) -> Path:
    """Test the claims on all results, also those of experiments that were not requested now, and write the page."""
    requested = {step.experiment for step in steps}
    earlier = [name for name in EXPERIMENTS if name not in requested and _is_whole(out / name)]
    steps = [*steps, *(Step(name, 0.0, kept=True) for name in earlier)]
    results = {step.experiment: Result.load(out / step.experiment) for step in steps if not step.reason}
    missing = {step.experiment: step.reason for step in steps if step.reason}
    found = judge(CLAIMS, results, missing)
    save_claims(found, out / "claims.json")
    write_paper(out, found, results)
    write_json(out / "reproduce.json", {"format": FORMAT, "command": command(), "steps": [asdict(s) for s in steps]})
    return write_experiments_report(out)

"""What an experiment is, and how it is run into a folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from backsight.core import UserError
from backsight.distributed import Processes
from backsight.experiments.subject import Subject
from backsight.figures import Pages, to_pdf, to_png
from backsight.io import write_bytes
from backsight.results import Result
from backsight.validation import convert_arguments, parse

logger: logging.Logger = logging.getLogger(__name__)

# ---- what an experiment is


@dataclass(frozen=True)
class Experiment:
    """One experiment: data, and its two halves, which know nothing of each other.

    Attributes:
        name: as users type it; the file's name.
        question: what it answers, one line.
        measure: a subject and settings (keyword arguments with defaults) -> :class:`Result`; draws nothing.
        draw: a result, of one subject or of several that were joined -> the pages of its figure; computes nothing, so
            that it can be drawn again from ``result.json`` alone.
        needs: what the data must have: ``masks``, ``boxes``, ``labels``.
        tasks: the kinds of forward model that it can be done with.
        padded: whether it knows of padding; one that compares whole images, or all their tokens, does not.
        compares_runs: ``measure`` has no subject, but reads finished runs (its first argument, ``runs``).
        samples: whether it takes chains with inverses that sample.
        controlled: whether its effects are measured on controls as well
            (:func:`~backsight.experiments.controls.controls_of`).
        narrow: a subject and settings -> the subject with the images that ``measure`` takes of it, if not the first
            ones: its controls see the same.
        reading: what one sees in its figure, and how far to trust it, in two or three sentences.
    """

    name: str
    question: str
    measure: Callable[..., Result]
    draw: Callable[[Result], Pages]
    needs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("detect", "classify", "features")
    padded: bool = True
    compares_runs: bool = False
    controlled: bool = True
    samples: bool = False
    narrow: Callable[..., Subject] | None = None
    reading: str = ""

    def fits(self, subject: Subject) -> str:
        """Why the experiment cannot be done with ``subject``, in one line; empty where it can."""
        if subject.model.spec.task not in self.tasks:
            return f"{self.name} is for models that {' or '.join(self.tasks)}, {subject.name} does not"
        if subject.padded and not self.padded:
            return f"{self.name} compares whole images, and these are padded: take a chain trained without --fit pad"
        if self.samples and not subject.sampling_stages:
            return (
                f"{self.name} takes draws, and no inverse of {subject.name} samples: train some beside them, as "
                "--inverse encoder@flow=flow"
            )
        try:
            subject.require(*self.needs)
        except UserError as error:
            return f"{self.name}: {error}"
        return ""


def read_settings(measure: Callable[..., Any], texts: Sequence[str]) -> dict[str, Any]:
    """``["num_pictures=3", "shares=[0.1, 0.5]"]`` -> the keyword arguments of an experiment; values are as in YAML.

    Raises:
        UserError: no such setting, or a value of another type.
    """
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"'{text}' is no setting: write NAME=VALUE, as num_pictures=3")
        settings[name] = parse(value, name)
    return check_settings(measure, settings)


def check_settings(measure: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as the types of the arguments of ``measure`` have them.

    Raises:
        UserError: no such setting, or a value of another type or out of its :class:`~backsight.validation.Range`.
    """
    return convert_arguments(measure, settings, "the experiment")


# ---- how it is run


def run_experiment(
    experiment: Experiment,
    subjects: Sequence[Subject],
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
) -> Result:
    """Measure, write ``result.json`` and ``table.csv``, and draw into ``out``: ``figure.pdf``, and its pages as
    ``figure.png``, ``figure-2.png``, ...

    Args:
        experiment: one of :data:`~backsight.experiments.EXPERIMENTS`.
        subjects: what it is done with, one after the other; none for an experiment that compares runs.
        out: the folder; what is there is replaced.
        settings: keyword arguments of its ``measure``.
        command: what the user typed, for the result.

    Raises:
        UserError: a subject that it cannot be done with, or a setting that it does not have or cannot be.
    """
    checked = check_settings(experiment.measure, settings or {})
    for subject in subjects:
        if reason := experiment.fits(subject):
            raise UserError(reason)
    measured = experiment.measure(**checked) if experiment.compares_runs else _measure(experiment, subjects, checked)
    result = replace(measured, command=command)
    processes = subjects[0].processes if subjects else Processes()
    # Drawn from the file, so that whoever draws it again from there gets the same figure.
    processes.from_main(lambda: draw(experiment, Result.load(result.save(out)), out))
    return result


def _measure(experiment: Experiment, subjects: Sequence[Subject], settings: Mapping[str, Any]) -> Result:
    """The results of all subjects as one; a note says which could not be measured.

    Raises:
        UserError: none could.
    """
    results, reasons = [], {}
    unseen = {name: 0 for name in ("num_pictures", "num_shown") if name in signature(experiment.measure).parameters}
    for subject in subjects:
        try:
            results.append(experiment.measure(subject, **{**settings, **(unseen if subject.control else {})}))
        except UserError as error:
            reasons[f"{subject.name} is left out: {error}"] = str(error)
    if not results:
        raise UserError("; ".join(dict.fromkeys(reasons.values())))
    for note in reasons:
        logger.warning("%s: %s", experiment.name, note)
    joined = Result.join(results)
    return replace(joined, notes=[*joined.notes, *reasons])


def draw(experiment: Experiment, result: Result, out: str | Path) -> None:
    """Write ``figure.pdf`` and its pages as ``figure.png``, ``figure-2.png``, ... into ``out``."""
    out, sheets = Path(out), experiment.draw(result)
    for number, sheet in enumerate(sheets, 1):
        write_bytes(out / page_name(number), to_png(sheet))
    write_bytes(out / "figure.pdf", to_pdf(sheets))
    number = len(sheets) + 1
    while (out / page_name(number)).exists():  # of an earlier figure that had more
        (out / page_name(number)).unlink()
        number += 1


def page_name(number: int) -> str:
    """The file of a page of a figure; the first is 1."""
    return "figure.png" if number == 1 else f"figure-{number}.png"


def figure_pages(folder: str | Path) -> list[Path]:
    """The pages of the figure in a folder, in order."""
    found = []
    while (path := Path(folder, page_name(len(found) + 1))).is_file():
        found.append(path)
    return found

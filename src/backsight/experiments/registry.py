"""What an experiment is, and how one is run into a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backsight.core import UserError
from backsight.experiments.settings import check_settings
from backsight.experiments.subject import Subject
from backsight.figures import to_pdf, to_png
from backsight.io import write_bytes
from backsight.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Experiment:
    """One experiment: data, and its two halves, which know nothing of each other.

    Attributes:
        name: as users type it; the file's name.
        question: what it answers, one line.
        measure: subjects and settings (keyword arguments with defaults) -> :class:`Result`; draws nothing.
        draw: a result -> a figure; computes nothing, so that it can be drawn again from ``result.json`` alone.
        needs: what the data must have: ``masks``, ``boxes``, ``labels``.
        tasks: the kinds of forward model that it can be done with.
        padded: whether it knows of padding; one that compares whole images, or all their tokens, does not.
    """

    name: str
    question: str
    measure: Callable[..., Result]
    draw: Callable[[Result], Figure]
    needs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("detect", "classify", "features")
    padded: bool = True

    def fits(self, subject: Subject) -> str:
        """Why the experiment cannot be done with ``subject``, in one line; empty where it can."""
        if subject.model.spec.task not in self.tasks:
            return f"{self.name} is for models that {' or '.join(self.tasks)}, {subject.name} does not"
        if subject.padded and not self.padded:
            return f"{self.name} compares whole images, and these are padded: take a chain trained without --fit pad"
        try:
            subject.require(*self.needs)
        except UserError as error:
            return f"{self.name}: {error}"
        return ""


def run_experiment(
    experiment: Experiment,
    subjects: Sequence[Subject],
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
) -> Result:
    """Measure, write ``result.json`` and ``table.csv``, draw ``figure.png`` and ``figure.pdf`` into ``out``.

    Raises:
        UserError: a subject that it cannot be done with, or a setting that it does not have or cannot be.
    """
    checked = check_settings(experiment.measure, settings or {})
    for subject in subjects:
        if reason := experiment.fits(subject):
            raise UserError(reason)
    result = replace(experiment.measure(subjects, **checked), command=command)
    # Drawn from the file, so that whoever draws it again from there gets the same figure.
    draw(experiment, Result.load(result.save(out)), out)
    return result


def draw(experiment: Experiment, result: Result, out: str | Path) -> None:
    """Write ``figure.png`` and ``figure.pdf`` of a result into ``out``."""
    figure = experiment.draw(result)
    write_bytes(Path(out) / "figure.png", to_png(figure))
    write_bytes(Path(out) / "figure.pdf", to_pdf(figure))

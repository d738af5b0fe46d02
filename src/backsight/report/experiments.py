"""Experiments and claims -> one HTML page that needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backsight.core import UserError
from backsight.experiments import EXPERIMENTS, Measurement, Result
from backsight.experiments.claims import VERDICTS, Effect, Judgement, load_claims
from backsight.experiments.run import figure_pages
from backsight.figures.forest import Bar
from backsight.io import as_record, read_json, write_text
from backsight.report.claims import bar_of, control_words, distinct_cards
from backsight.report.render import environment, write_report
from backsight.report.views import format_bounds, format_effect, picture_uri
from backsight.validation import Record

FORMAT = "backsight.reproduce/1"
"""Of ``reproduce.json``; changes when a reader of the old schema would misread the new one."""

LARGEST_FIGURE = 400_000
"""A larger one (of many pictures) goes into the page as WebP; in bytes."""


@dataclass(frozen=True)
class Step(Record):
    """What became of one experiment: the ``seconds`` it took, whether an earlier result was ``kept``, or the ``reason``
    why there is none. ``broke``: the reason is a mistake in the program, and not one that the user can fix."""

    experiment: str
    seconds: float
    kept: bool = False
    reason: str = ""
    broke: bool = False

    @property
    def message(self) -> str:
        """A line for the log."""
        if self.reason:
            return f"{self.experiment}: not done: {self.reason}"
        return f"{self.experiment}: kept" if self.kept else f"{self.experiment}: {self.seconds:.0f} s"


@dataclass(frozen=True)
class Row:
    """A claim on the page: the part that its verdict hangs on, and how that is drawn; None where it was not tested."""

    claim: Judgement
    bar: Bar | None

    @property
    def part(self) -> Effect | None:
        """The effect that the verdict hangs on."""
        return self.claim.effect

    @property
    def controls(self) -> str:
        """The effect of untrained things, in words."""
        return control_words(self.claim)

    @property
    def chance(self) -> str:
        """The p-value that the verdict goes by."""
        adjusted = self.claim.adjusted
        return "" if adjusted is None else "p < 0.001" if adjusted < 0.001 else f"p = {adjusted:.3f}"

    @property
    def hint(self) -> str:
        """What a pointer on its interval shows: the effect, what is claimed, and the condition."""
        claim, part = self.claim, self.part
        if part is None:
            return claim.reason
        effect = f"{format_effect(part.mean)} {format_bounds(part.low, part.high)}"
        low, high = ("" if bound is None else format_effect(bound) for bound in claim.bounds)
        claimed = f"from {low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"
        against = f"{claimed}, compared with {format_effect(claim.null)}"
        return f"{claim.verdict}: {effect}\n{claim.unit}\nclaimed: {against}\n{claim.condition}"


@dataclass(frozen=True)
class Line:
    """A measurement in the table of an experiment: its labels, (mean, low, high, images, seeds), and the same in words
    with the digits that the table leaves out."""

    labels: Sequence[Any]
    numbers: Sequence[float | int]
    hint: str


@dataclass(frozen=True)
class Section:
    """An experiment on the page: ``figures`` are data URIs, a figure's pages; ``columns`` are the labels of the
    measurements."""

    name: str
    question: str
    reading: str
    result: Result
    figures: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Line]


def write_experiments_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a folder of :func:`~backsight.reproduction.reproduce`, or of a single experiment.

    Raises:
        UserError: there is neither, or a file in it cannot be read.
    """
    folder = Path(folder)
    command, steps = _read_steps(folder)
    done = [step for step in steps if not step.reason]
    places = {step.experiment: folder / step.experiment for step in done} if steps else {"": folder}
    sections = [_section(place) for place in places.values()]
    claims = load_claims(folder / "claims.json") if steps else []
    page = (
        environment()
        .get_template("experiments.html")
        .render(
            title="What survives, stage by stage" if steps else sections[0].question,
            command=command or sections[0].result.command,
            sections=sections,
            rows=[Row(claim, bar_of(claim)) for claim in claims],
            methods=methods.read_text(encoding="utf-8") if (methods := folder / "methods.txt").is_file() else "",
            counts={verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS},
            cards=distinct_cards(card for section in sections for card in section.result.subjects),
            steps=steps,
        )
    )
    return write_text(folder / "report.html", page)


def _read_steps(folder: Path) -> tuple[str, list[Step]]:
    """The command and the steps of ``reproduce.json``; nothing where the folder is that of one experiment."""
    path = folder / "reproduce.json"
    if not path.is_file():
        return "", []
    fix = "run `backsight reproduce` again"
    value = read_json(path, fix, ("format",))
    if value["format"] != FORMAT:
        raise UserError(f"{path} is in another format: this version reads {FORMAT}")
    saved = as_record(value, _Saved, str(path), fix)
    return saved.command, saved.steps


@dataclass(frozen=True)
class _Saved(Record):
    """What ``reproduce.json`` holds."""

    command: str
    steps: list[Step]


def _section(folder: Path) -> Section:
    result = Result.load(folder)
    experiment = EXPERIMENTS.get(result.experiment)
    if experiment is None:
        raise UserError(
            f"{folder} has a result of '{result.experiment}', an experiment that this version does not know"
        )
    columns = list(dict.fromkeys(name for each in result.measurements for name in each.labels))
    rows = [_line(each, columns) for each in result.measurements]
    figures = [picture_uri(path.read_bytes(), LARGEST_FIGURE) for path in figure_pages(folder)]
    if not figures:
        raise UserError(f"{folder / 'figure.png'} is missing: do the experiment again")
    return Section(experiment.name, experiment.question, experiment.reading, result, figures, columns, rows)


def _line(measurement: Measurement, columns: Sequence[str]) -> Line:
    seeds, images = measurement.known().shape
    value, low, high = measurement.interval()
    labels = [measurement.labels.get(name, "") for name in columns]
    condition = f"{', '.join(str(label) for label in labels if label != '')}\n{images} images, {seeds} seeds"
    bounds = f"[{low:.6g}, {high:.6g}]" if math.isfinite(low) else "(no interval)"
    text = f"{value:.6g} {bounds}" if math.isfinite(value) else "no answer"
    return Line(labels, (value, low, high, images, seeds), f"{text}\n{condition}")


# ---- the page of a folder, whatever is in it


def rewrite_report(folder: str | Path) -> Path:
    """Write ``report.html`` again: of reconstructed pictures, of one experiment, or of a reproduction.

    ``folder`` may be the file of results itself, the page is then written beside it.

    Raises:
        UserError: the folder holds none of them, or a file in it cannot be read.
    """
    names, folder = ("results.json", "result.json", "reproduce.json"), Path(folder)
    if folder.is_file() and folder.name not in names:
        raise UserError(f"{folder} holds no results: give {', '.join(names)}, or the folder it is in")
    folder = folder.parent if folder.is_file() else folder
    if (folder / names[0]).is_file() or not any((folder / name).is_file() for name in names[1:]):
        return write_report(Result.load(folder / names[0]), folder / "report.html")
    return write_experiments_report(folder)

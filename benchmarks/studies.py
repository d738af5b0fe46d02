"""Experiments on images that are computed once, against the same experiments image by image with nothing kept."""

from __future__ import annotations

from statistics import median

from backsight.experiments import EXPERIMENTS, Subject
from backsight.experiments.subject import open_subject
from benchmarks.measure import Ratio, Side, quotients, seconds
from benchmarks.settings import SHIPPED, Settings

MEASURED = ("stage_error", "intermediate_layers", "token_noise")
"""The experiments that are run, one after the other on the same images."""

NUM_IMAGES = 16


def measure(settings: Settings) -> list[Ratio]:
    """The time of several experiments in a row by the naive loop, over ours."""
    return [_measure(name, settings) for name in settings.chosen(SHIPPED)]


def _measure(name: str, settings: Settings) -> Ratio:
    subject = open_subject(name, num_images=NUM_IMAGES, device=settings.device_name)
    sides: dict[str, Side] = {"naive": lambda: study_naively(subject), "ours": lambda: study(subject)}
    naive, ours = seconds(sides, settings.rounds, settings.device).values()
    return Ratio(
        f"experiments/{name}",
        quotients(naive, ours),
        f"seconds of {len(MEASURED)} experiments, one image at a time and nothing kept, over ours",
        amounts={"naive seconds": median(naive), "our seconds": median(ours)},
    )


def study(subject: Subject) -> None:
    """Run the experiments on one subject, which computes everything once; it begins with nothing."""
    fresh = Subject(subject.model, subject.ensemble, subject.data, num_images=NUM_IMAGES)
    for experiment in MEASURED:
        EXPERIMENTS[experiment].measure(fresh)


def study_naively(subject: Subject) -> None:
    """Run each experiment for itself, one image after the other; no trace and no reconstruction is kept."""
    for experiment in MEASURED:
        alone = Subject(subject.model, subject.ensemble, subject.data, num_images=NUM_IMAGES, batch_size=1, cache=0)
        EXPERIMENTS[experiment].measure(alone)

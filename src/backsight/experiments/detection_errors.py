"""Why detections go wrong, as seen from inside: do the features still hold what was missed (paper, Fig. 13)?

Detections are matched with the truth, and told apart by how they are wrong; then it is measured whether the
reconstruction has the object, and what the very query that detected it paints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backsight.core import IMAGE
from backsight.data import Batch
from backsight.experiments.cases import Case, find_cases
from backsight.experiments.error_gallery import Gallery
from backsight.experiments.error_pages import error_page
from backsight.experiments.gather import gather
from backsight.experiments.queries import BY_QUERY, query_stages, reconstruct_without
from backsight.experiments.run import Experiment
from backsight.experiments.settings import AnyNumber, Share
from backsight.experiments.subject import Subject
from backsight.metrics import OUTCOMES, brought_by, presence, root_mean_square, standing_out
from backsight.results import Measurement, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = dict[tuple[str, str], Tensor]
"""(stage, metric) -> ``S cases``, or ``1 cases`` where seeds make no difference; NaN where there is no answer."""


def measure(subject: Subject, *, threshold: Share = 0.5, num_shown: AnyNumber = 6) -> Result:
    """How many of each type, and what of them is in the reconstructions.

    Labels: ``model``, ``type`` (one of :data:`~backsight.metrics.OUTCOMES`), ``stage``, ``metric``. Values are means
    over the cases of the type in an image:

    ====================  ==================================================================================
    ``count``             how many there are in the image (stage ``image``)
    ``presence``          of the object in the reconstruction: 1 as in the input, 0 like its surroundings
                          (:func:`~backsight.metrics.presence`); of a detection that means no object, the same
                          of what lies in its box
    ``contrast``          of its mean colour with its surroundings', in the input (stage ``image``) and in the
                          reconstructions (:func:`~backsight.metrics.standing_out`)
    ``brought by query``  how far the query that detected it brings the reconstruction towards the
                          input: 1 all the way, below 0 away (:func:`~backsight.metrics.brought_by`)
    ``painted by query``  how much that query changes the reconstruction there, a root mean square
    ``painted elsewhere`` the same in the rest of the image
    ====================  ==================================================================================

    What a query does is measured by silencing it, where its features are those of the stage
    (:func:`~backsight.experiments.queries.reconstruct_without`).

    Args:
        threshold: the least score of a detection that counts.
        num_shown: cases of each type that are shown: the first ones, not chosen.
    """
    gallery = Gallery(subject, num_shown)
    measurements = list(_measure(subject, threshold, gallery))
    settings = {"threshold": threshold, "num_shown": num_shown}
    return Result("detection_errors", [subject.card()], measurements, gallery.pictures, settings)


def _measure(subject: Subject, threshold: float, gallery: Gallery) -> Iterator[Measurement]:
    def values(batch: Batch) -> dict[tuple[str, str, str], Tensor]:
        cases = find_cases(subject, batch, threshold)
        gallery.add(batch, cases)
        known = _of_reconstructions(subject, batch, cases)
        for stage in query_stages(subject):
            known |= _of_queries(subject, batch, cases, stage, gallery)
        return _by_type(known, cases, len(batch.ids))

    for (kind, stage, metric), each in gather(subject, values).items():
        yield Measurement({"model": subject.name, "type": kind, "stage": stage, "metric": metric}, each)


def _of_reconstructions(subject: Subject, batch: Batch, cases: Sequence[Case]) -> Values:
    """Presence and contrast of every case."""
    images = {IMAGE: batch.images[None]} | {stage: subject.reconstruct(batch, stage) for stage in subject.stages}
    values: Values = {}
    for stage, pictures in images.items():
        present, contrast = (torch.full((len(pictures), len(cases)), torch.nan, dtype=torch.float64) for _ in range(2))
        for index, case in enumerate(cases):
            part = (..., *case.window)
            mask, ring = (each[part].to(pictures.device) for each in (case.mask, case.ring))
            painted = pictures[:, case.row][part]
            contrast[:, index] = standing_out(painted, mask, ring)
            present[:, index] = presence(batch.images[case.row][part], painted, mask[None], ring[None])[:, 0]
        values[stage, "contrast"] = contrast
        if stage != IMAGE:  # of which it is 1
            values[stage, "presence"] = present
    return values


def _of_queries(subject: Subject, batch: Batch, cases: Sequence[Case], stage: str, gallery: Gallery) -> Values:
    """What the query of every detection does to the reconstruction from ``stage``, by silencing it."""
    detected = [(index, case) for index, case in enumerate(cases) if case.query is not None]
    pairs = [(case.row, case.query) for _, case in detected if case.query is not None]
    shape = (len(subject.seeds), len(cases))
    values = {name: torch.full(shape, torch.nan, dtype=torch.float64) for name in BY_QUERY}
    reconstructions = subject.reconstruct(batch, stage)
    silenced = reconstruct_without(subject, batch, stage, pairs)
    for (index, case), without in zip(detected, silenced, strict=True):
        own, part, mask = reconstructions[:, case.row], (..., *case.window), case.mask.to(without.device)
        values["brought by query"][:, index] = brought_by(
            batch.images[case.row][part], own[part], without[part], mask[part]
        )
        values["painted by query"][:, index] = root_mean_square((own - without)[part], mask[part])
        elsewhere = ~mask if batch.valid is None else ~mask & batch.valid[case.row]
        values["painted elsewhere"][:, index] = root_mean_square(own - without, elsewhere)
        gallery.add_without(case, stage, without[0])
    return {(stage, name): each for name, each in values.items()}


def _by_type(known: Values, cases: Sequence[Case], num_images: int) -> dict[tuple[str, str, str], Tensor]:
    """(type, stage, metric) -> ``S B``: the mean over the cases of each image."""
    rows = torch.tensor([case.row for case in cases], dtype=torch.int64)
    by_image = rows == torch.arange(num_images)[:, None]  # B cases
    found = {}
    for kind in OUTCOMES:
        chosen = by_image & torch.tensor([case.finding.outcome == kind for case in cases], dtype=torch.bool)
        found[kind, IMAGE, "count"] = chosen.sum(1)
        for (stage, metric), values in known.items():
            if kind != "missed" or metric not in BY_QUERY:
                spread = torch.where(chosen, values[:, None], torch.nan)  # S B cases
                found[kind, stage, metric] = spread.nanmean(2)
    return found


def draw(result: Result) -> Figure:
    """How many of each type; presence and contrast over the stages, and what the queries paint; a case of each type."""
    return error_page(result)


DETECTION_ERRORS = Experiment(
    "detection_errors",
    "Do the features hold what was missed, and what paints what is not there?",
    measure,
    draw,
    needs=("boxes",),
    tasks=("detect",),
)
"""Paper, Fig. 13."""

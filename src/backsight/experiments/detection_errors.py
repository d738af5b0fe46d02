"""Why detections go wrong, as seen from inside: do the features still hold what was missed (paper, Fig. 13)?

Detections are matched with the truth, and told apart by how they are wrong; then it is measured whether the
reconstruction has the object, and what the very query that detected it paints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from backsight.core import IMAGE
from backsight.data import Batch
from backsight.experiments.detection_cases import (
    BY_QUERY,
    ERRORS,
    Case,
    Search,
    find_cases,
    query_stages,
    reconstruct_without,
    search_errors,
)
from backsight.experiments.drawing import models_of, named_lines, title_of
from backsight.experiments.objects import box_notes
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject
from backsight.figures import PALETTE, ErrorPoint, Pages, Panel, Part, cut_out, pages, panel_part, picture_part
from backsight.metrics import OUTCOMES, brought_by, presence, root_mean_square, standing_out
from backsight.results import INPUT, Label, Measurement, Picture, Result
from backsight.validation import AnyNumber, Share

RECONSTRUCTION, WITHOUT = "reconstruction", "without query"
"""What a picture shows, if not the input: its label ``shows``."""

TRUTH_COLOUR, ANSWER_COLOUR = PALETTE[2], PALETTE[1]
"""Of the object's box, and of the detection's."""

Values = dict[tuple[str, str], Tensor]
"""(stage, metric) -> ``S cases``, or ``1 cases`` where seeds make no difference; NaN where there is no answer."""


def measure(subject: Subject, *, threshold: Share = 0.5, num_shown: AnyNumber = 6, among: AnyNumber = 0) -> Result:
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
    (:func:`~backsight.experiments.detection_cases.reconstruct_without`).

    Args:
        threshold: the least score of a detection that counts.
        num_shown: cases of each type that are shown: the first ones, not chosen.
        among: for a detector that hardly ever errs: look through so many of the data's images, and take those with
            errors in place of the first ones, of each type in turn the next one, the rarest type first.
    """
    chosen = _notes(subject, _search(subject, among, threshold))
    subject = with_errors(subject, threshold=threshold, among=among)
    gallery = Gallery(subject, num_shown)
    measurements = list(_measure(subject, threshold, gallery))
    settings = {"threshold": threshold, "num_shown": num_shown, "among": among}
    notes = [*chosen, *box_notes(subject)]
    return subject.result("detection_errors", measurements, gallery.pictures, settings, notes)


def with_errors(subject: Subject, *, threshold: float = 0.5, among: int = 0, **_: object) -> Subject:
    """The subject with as many images, chosen as :func:`measure` does; controls keep theirs, their subject's."""
    search = _search(subject, among, threshold)
    return subject if search is None else subject.only(search.choose(subject.num_images))


def _search(subject: Subject, among: int, threshold: float) -> Search | None:
    if not among or subject.control:
        return None
    most = max(among, subject.num_images)
    ask = partial(search_errors, subject.model, subject.data, most, threshold, -(-subject.num_images // len(ERRORS)))
    return subject.remember(("errors", among, threshold), ask)


def _notes(subject: Subject, search: Search | None) -> list[str]:
    if search is None:
        return []
    counts = ", ".join(f"{kind} in {len(each)}" for kind, each in search.found.items())
    chosen = len({index for each in search.found.values() for index in each} & set(search.choose(subject.num_images)))
    return [
        f"{subject.name}: {chosen} of the {subject.num_images} images were chosen for their errors, out of "
        f"{search.looked} that were looked through ({counts}), so how many there are of a type says nothing"
    ]


def _measure(subject: Subject, threshold: float, gallery: Gallery) -> Iterator[Measurement]:
    def values(batch: Batch) -> dict[tuple[str, str, str], Tensor]:
        cases = find_cases(subject, batch, threshold)
        gallery.add(batch, cases)
        known = _of_reconstructions(subject, batch, cases)
        for stage in query_stages(subject):
            known |= _of_queries(subject, batch, cases, stage, gallery)
        return _by_type(known, cases, len(batch.ids))

    for (kind, stage, metric), each in subject.gather(values).items():
        yield Measurement({"type": kind, "stage": stage, "metric": metric}, each)


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


# ---- pictures of cases


class Gallery:
    """The first cases of every type, as the first seed paints them.

    Labels of a picture: ``model``, ``type``, ``class`` (the object's; the detection's where there is no object),
    ``detected as`` and ``score`` (of the detection, "" and 0 where there is none), ``overlap`` (of the two), ``image``
    (its id), ``case`` (a number), ``stage``, ``shows``: ``input``, ``reconstruction``, or ``without query``: the
    reconstruction once the query that detected it says nothing.

    Args:
        subject: whose images they are.
        num_each: how many cases of each type.
    """

    def __init__(self, subject: Subject, num_each: int) -> None:
        self.subject: Subject = subject
        self.num_each: int = num_each
        self.pictures: list[Picture] = []
        self._count: Counter[str] = Counter()
        self._taken: dict[Case, tuple[dict[str, Label], Batch]] = {}

    def add(self, batch: Batch, cases: Sequence[Case]) -> None:
        """Take what there is room for of the cases of a batch, with all their reconstructions."""
        for case in cases:
            if self._count[case.finding.outcome] < self.num_each:
                self._count[case.finding.outcome] += 1
                labels = self._describe(batch, case)
                self._taken[case] = labels, batch
                self.pictures += self._show(batch, case, labels)

    def add_without(self, case: Case, stage: str, reconstruction: Tensor) -> None:
        """``3 H W`` without the query of ``case``, if it has been taken."""
        if case in self._taken:
            labels, batch = self._taken[case]
            picture = cut_out(batch.cut(case.row, reconstruction), case.boxes, least=0)
            self.pictures.append(Picture({**labels, "stage": stage, "shows": WITHOUT}, picture))

    def _describe(self, batch: Batch, case: Case) -> dict[str, Label]:
        known, answer, names = case.truth or case.answer, case.answer, self.subject.data.classes
        return {
            "type": case.finding.outcome,
            "class": names.get(known[1], str(known[1])) if known else "",
            "detected as": names.get(answer[1], str(answer[1])) if answer else "",
            "score": round(answer[2], 3) if answer else 0.0,
            "overlap": round(case.finding.overlap, 3),
            "image": batch.ids[case.row],
            "case": len(self._taken),
        }

    def _show(self, batch: Batch, case: Case, labels: Mapping[str, Label]) -> Iterator[Picture]:
        boxes = ((case.truth, TRUTH_COLOUR), (case.answer, ANSWER_COLOUR))
        frames = [(each[0], colour) for each, colour in boxes if each]
        image = batch.cut(case.row, batch.images[case.row])
        yield Picture({**labels, "stage": INPUT, "shows": INPUT}, cut_out(image, case.boxes, frames))
        for stage in self.subject.stages:
            painted = batch.cut(case.row, self.subject.reconstruct(batch, stage)[0, case.row])
            yield Picture({**labels, "stage": stage, "shows": RECONSTRUCTION}, cut_out(painted, case.boxes, least=0))


# ---- the figure

TITLES = {
    "presence": "Presence: 1 as in the input, 0 like the surroundings",
    "contrast": "Contrast with the surroundings, RGB in [0, 1]",
    "brought by query": "Its query brings the place to the input: 1 all the way",
    "painted by query": "Its query changes the place, RGB in [0, 1]",
}
"""Of the panels, in their order."""

DRAWN = ("correct", "class", "location", "duplicate", "background", "missed")
"""The types that have a line: as many as there are colours. What is wrong in both is rare, and in the table."""

_NAMES = {IMAGE: INPUT}
_ROWS = 1  # cases of each type


def draw(result: Result) -> Pages:
    """For all models how many of each type; for each model its lines over the stages and a case of each type."""
    models = models_of(result)
    chosen = ", in images chosen for their errors" if result.settings.get("among") else ""
    title = f"Detections and missed objects by type{chosen}"
    parts = [panel_part([Panel(title, _counts(result, models), label="how many", joined=False)])]
    for model in models:
        if panels := _panels(result, model):
            parts.append(panel_part(panels, columns=2, heading=title_of(result, model)))
        parts += _cases(result, model)
    return pages(parts)


def _counts(result: Result, models: Sequence[str]) -> dict[str, list[ErrorPoint]]:
    return {
        title_of(result, model): [
            ErrorPoint(kind, [float(result.one(model=model, type=kind, metric="count").values.sum())])
            for kind in OUTCOMES
        ]
        for model in models
    }


def _panels(result: Result, model: str) -> list[Panel]:
    """A panel for each quantity that has answers, in it a line for each type that has."""
    types = {kind: {"type": kind} for kind in DRAWN}
    panels = [
        Panel(title, named_lines(result, types, names=_NAMES, model=model, metric=metric))
        for metric, title in TITLES.items()
    ]
    return [panel for panel in panels if panel.table]


def _cases(result: Result, model: str) -> list[Part]:
    """The first cases of each type: their input, what each stage has, and what is left without the query."""
    shown = result.shown(model=model)
    columns = list(dict.fromkeys((str(each.labels["stage"]), str(each.labels["shows"])) for each in shown))
    columns.sort(key=lambda column: (INPUT, RECONSTRUCTION, WITHOUT).index(column[1]))
    columns = [*[each for each in columns if each[1] != WITHOUT], *[each for each in columns if each[1] == WITHOUT][:1]]
    rows, names, captions = [], [], []
    for kind in OUTCOMES:
        numbers = list(dict.fromkeys(each.labels["case"] for each in shown if each.labels["type"] == kind))
        for number in numbers[:_ROWS]:
            own = {(str(p.labels["stage"]), str(p.labels["shows"])): p for p in shown if p.labels["case"] == number}
            rows.append([own[column].image if column in own else None for column in columns])
            names.append(kind)
            captions.append([_caption(own[INPUT, INPUT]), *[""] * (len(columns) - 1)])
    if not rows:
        return []
    titles = [f"{stage}, {shows}" if shows == WITHOUT else stage for stage, shows in columns]
    heading = f"{title_of(result, model)}: object green, detection red; as the first seed paints them"
    return [picture_part(rows, titles, names, captions, heading)]


def _caption(picture: Picture) -> str:
    labels = picture.labels
    if labels["type"] == "missed":
        return str(labels["class"])
    answer = f"{labels['detected as']} {labels['score']:.2f}"
    return answer if labels["class"] == labels["detected as"] else f"{labels['class']} as {answer}"


DETECTION_ERRORS = Experiment(
    "detection_errors",
    "Do the features hold what was missed, and what paints what is not there?",
    measure,
    draw,
    needs=("boxes",),
    tasks=("detect",),
    narrow=with_errors,
    reading=(
        "Objects that were found, missed and confused, and how clearly each stands out in the reconstruction (1 as in "
        "the input, 0 like its surroundings). Present is sound, absent a hint; of few cases the intervals are wide."
    ),
)
"""Paper, Fig. 13."""

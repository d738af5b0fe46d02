"""Pictures of cases: the input with truth and detection drawn on it, beside what each stage holds of the same place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from backsight.data import Batch
from backsight.experiments.cases import Case
from backsight.experiments.subject import Subject
from backsight.figures import PALETTE
from backsight.figures.outlines import crop_around, cut_out
from backsight.results import Label, Picture

INPUT, RECONSTRUCTION, WITHOUT = "input", "reconstruction", "without query"
"""What a picture shows: its label ``shows``."""

TRUTH_COLOUR, SAID_COLOUR = PALETTE[2], PALETTE[1]
"""Of the object's box, and of the detection's."""


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
        self.subject, self.num_each = subject, num_each
        self.pictures: list[Picture] = []
        self._count: Counter[str] = Counter()
        # The cases themselves are kept too: an id is unique only as long as what it names is there.
        self._taken: dict[int, tuple[Case, dict[str, Label], Batch]] = {}

    def add(self, batch: Batch, cases: Sequence[Case]) -> None:
        """Take what there is room for of the cases of a batch, with all their reconstructions."""
        for case in cases:
            if self._count[case.finding.outcome] < self.num_each:
                self._count[case.finding.outcome] += 1
                labels = self._describe(batch, case)
                self._taken[id(case)] = case, labels, batch
                self.pictures += self._show(batch, case, labels)

    def add_without(self, case: Case, stage: str, reconstruction: Tensor) -> None:
        """``3 H W`` without the query of ``case``, if it has been taken."""
        if id(case) in self._taken:
            _, known, batch = self._taken[id(case)]
            picture = _cut(case, batch.cut(case.row, reconstruction))
            self.pictures.append(Picture({**known, "stage": stage, "shows": WITHOUT}, picture))

    def _describe(self, batch: Batch, case: Case) -> dict[str, Label]:
        known = case.truth or case.said
        said = case.said
        return {
            "model": self.subject.name,
            "type": case.finding.outcome,
            "class": _name(self.subject, known[1]) if known else "",
            "detected as": _name(self.subject, said[1]) if said else "",
            "score": round(said[2], 3) if said else 0.0,
            "overlap": round(case.finding.overlap, 3),
            "image": batch.ids[case.row],
            "case": len(self._taken),
        }

    def _show(self, batch: Batch, case: Case, labels: Mapping[str, Label]) -> Iterator[Picture]:
        frames = [(each[0], colour) for each, colour in ((case.truth, TRUTH_COLOUR), (case.said, SAID_COLOUR)) if each]
        image = batch.cut(case.row, batch.images[case.row])
        window = crop_around(case.boxes, (image.shape[-2], image.shape[-1]))
        yield Picture({**labels, "stage": INPUT, "shows": INPUT}, cut_out(image, window, frames))
        for stage in self.subject.stages:
            picture = _cut(case, batch.cut(case.row, self.subject.reconstruct(batch, stage)[0, case.row]))
            yield Picture({**labels, "stage": stage, "shows": RECONSTRUCTION}, picture)


def _cut(case: Case, image: Tensor) -> Tensor:
    return cut_out(image, crop_around(case.boxes, (image.shape[-2], image.shape[-1])), least=0)


def _name(subject: Subject, label: int) -> str:
    names: Mapping[int, str] = subject.data.classes
    return names.get(label, str(label))

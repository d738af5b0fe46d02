"""A detector's errors on its data, found a few images at a time: counted, and each shown from every stage."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backsight.app.model_view import ModelView
from backsight.app.rendering import EmbeddedImage, embed
from backsight.core import UserError
from backsight.data import Sample
from backsight.data.split import Selection
from backsight.experiments import detection_errors
from backsight.experiments.subject import Subject
from backsight.metrics import OUTCOMES
from backsight.results import Label, Picture

NUM_IMAGES = 96
"""Images that are searched for errors."""
AT_ONCE = 4
"""Images of one step: for so long the model is not free for others."""
NUM_SHOWN = 6
"""Cases of each type that are shown of one step; all of them are counted."""


@dataclass(frozen=True)
class Recorded(Selection):
    """Some images of some data, which records the index of each that was read by its id."""

    places: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, index: int) -> Sample | None:
        sample = super().__getitem__(index)
        if sample is not None:
            self.places[sample.id] = self.indices[index]
        return sample


@dataclass(frozen=True)
class ErrorCase:
    """One detection or missed object: a ``number``, what the experiment found of it (``labels``), the ``index`` of its
    image in the data, and crops around it, ``{(stage, what it shows): image}``."""

    number: int
    labels: Mapping[str, Label]
    index: int
    crops: Mapping[tuple[str, str], EmbeddedImage]

    @property
    def kind(self) -> str:
        """Which type of error, one of :data:`~backsight.metrics.OUTCOMES`."""
        return str(self.labels["type"])

    @property
    def label(self) -> str:
        """The class of the object; that of the detection where there is no object."""
        return str(self.labels["class"])


class Diagnosis:
    """What is known so far of a detector's errors.

    Args:
        model: the detector and its data.
        num_images: how many of the data's first test images are searched.
    """

    def __init__(self, model: ModelView, num_images: int = NUM_IMAGES) -> None:
        self.model: ModelView = model
        self.num_images: int = min(num_images, len(model.subject.data))
        self.num_done: int = 0
        self.cases: list[ErrorCase] = []
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def is_done(self) -> bool:
        """Whether all images were searched."""
        return self.num_done >= self.num_images

    @property
    def classes(self) -> list[str]:
        """The classes of the data."""
        return list(self.model.subject.data.classes.values())

    def step(self) -> None:
        """Search the next few images; nothing if all were searched."""
        with self._lock:
            if self.is_done:
                return
            stop = min(self.num_done + AT_ONCE, self.num_images)
            images = Recorded(self.model.subject.data, range(self.num_done, stop))
            whole = self.model.subject
            subject = Subject(whole.model, whole.ensemble, images, batch_size=AT_ONCE, mean_image=whole.baseline)
            with self.model.lock:
                result = detection_errors.measure(subject, num_shown=NUM_SHOWN)
            for kind in OUTCOMES:
                counted = result.select(type=kind, metric="count")
                self.counts[kind] += sum(int(each.known().sum()) for each in counted)
            self._add_cases(result.shown(), images)
            self.num_done = stop

    def case(self, number: str) -> ErrorCase:
        """A case by its number. One that was not found yet is searched for: as far as all images, and no further.

        Raises:
            UserError: there is no such case.
        """
        if not number.isdecimal() or len(number) > 6:
            raise UserError(f"'{number[:20]}' is no case: click one in the gallery")
        while len(self.cases) <= int(number) and not self.is_done:
            self.step()
        if len(self.cases) <= int(number):
            raise UserError(f"there is no case {number}: there are {len(self.cases)}")
        return self.cases[int(number)]

    def select(self, kind: str = "", label: str = "") -> list[ErrorCase]:
        """The cases of one type and one class ("" for any), errors before what is right."""
        found = [each for each in self.cases if kind in ("", each.kind) and label in ("", each.label)]
        return sorted(found, key=lambda each: each.kind == "correct")

    def _add_cases(self, pictures: list[Picture], images: Recorded) -> None:
        by_case: dict[Any, list[Picture]] = {}
        for each in pictures:
            by_case.setdefault(each.labels["case"], []).append(each)
        for group in by_case.values():
            crops = {(str(p.labels["stage"]), str(p.labels["shows"])): embed(p.image, lossy=True) for p in group}
            labels = {name: value for name, value in group[0].labels.items() if name not in ("case", "stage", "shows")}
            index = images.places[str(labels["image"])]
            self.cases.append(ErrorCase(len(self.cases), labels, index, crops))

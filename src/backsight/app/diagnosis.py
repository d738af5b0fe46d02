"""The errors of a detector on its data, found part by part, so that they can be watched as they come, and stopped.

The work is the experiment ``detection_errors``, a few pictures at a time. It is shared by all visitors: what one has
waited for is there for the next.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backsight.app.eyes import Eyes
from backsight.app.pictures import small_uri
from backsight.data import ImageData, Sample
from backsight.experiments import detection_errors
from backsight.experiments.detection_errors import INPUT, RECONSTRUCTION, WITHOUT
from backsight.experiments.subject import Subject
from backsight.metrics import OUTCOMES
from backsight.results import Label, Picture

NUM_IMAGES = 96
"""Pictures that are looked through."""
AT_ONCE = 4
"""Pictures of one part: for so long the model is not free for others."""
NUM_SHOWN = 6
"""Cases of each type that are shown of one part; all of them are counted."""


@dataclass
class Part:
    """The images ``start`` to ``stop`` - 1 of some data, which remembers the place of each."""

    data: ImageData
    start: int
    stop: int
    places: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The data's own name."""
        return self.data.name

    @property
    def classes(self) -> Mapping[int, str]:
        """The data's class names by label."""
        return self.data.classes

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Sample | None:
        sample = self.data[self.start + index]
        if sample is not None:
            self.places[sample.id] = self.start + index
        return sample

    def fingerprint(self) -> str:
        """That of the whole data."""
        return self.data.fingerprint()


@dataclass(frozen=True)
class ErrorCase:
    """One detection or missed object: a ``number``, what the experiment says of it (``labels``), the ``place`` of its
    picture in the data, and pictures of the spot, ``{(stage, what it shows): address}``."""

    number: int
    labels: Mapping[str, Label]
    place: int
    pictures: Mapping[tuple[str, str], str]

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
        eyes: the detector and its data.
        num_images: how many of the data's first test images are looked through.
    """

    def __init__(self, eyes: Eyes, num_images: int = NUM_IMAGES) -> None:
        self.eyes, self.num_images = eyes, min(num_images, len(eyes.subject.data))
        self.num_done = 0
        self.cases: list[ErrorCase] = []
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def is_done(self) -> bool:
        """Whether all images were looked at."""
        return self.num_done >= self.num_images

    def step(self) -> None:
        """Look at the next few images; nothing if all were looked at."""
        with self._lock:
            if self.is_done:
                return
            stop = min(self.num_done + AT_ONCE, self.num_images)
            part = Part(self.eyes.subject.data, self.num_done, stop)
            with self.eyes.lock:
                result = detection_errors.measure(self._subject(part), num_shown=NUM_SHOWN)
            for kind in OUTCOMES:
                counted = result.select(type=kind, metric="count")
                self.counts[kind] += sum(int(each.known().sum()) for each in counted)
            self._take(result.shown(), part)
            self.num_done = stop

    def chosen(self, kind: str = "", label: str = "") -> list[ErrorCase]:
        """The cases of one type and one class ("" for any), errors before what is right."""
        found = [each for each in self.cases if kind in ("", each.kind) and label in ("", each.label)]
        return sorted(found, key=lambda each: each.kind == "correct")

    def labels(self) -> list[str]:
        """The classes of the data."""
        return list(self.eyes.subject.data.classes.values())

    def _subject(self, part: Part) -> Subject:
        whole = self.eyes.subject
        return Subject(whole.model, whole.ensemble, part, batch_size=AT_ONCE, mean_image=whole.baseline)

    def _take(self, pictures: list[Picture], part: Part) -> None:
        by_case: dict[Any, list[Picture]] = {}
        for each in pictures:
            by_case.setdefault(each.labels["case"], []).append(each)
        for group in by_case.values():
            shown = {(str(each.labels["stage"]), str(each.labels["shows"])): small_uri(each.image) for each in group}
            labels = {name: value for name, value in group[0].labels.items() if name not in ("case", "stage", "shows")}
            place = part.places[str(labels["image"])]
            self.cases.append(ErrorCase(len(self.cases), labels, place, shown))


SHOWS = (INPUT, RECONSTRUCTION, WITHOUT)
"""What a picture of a case shows: the input, what a stage holds of the spot, and the same once the query that detected
it says nothing."""

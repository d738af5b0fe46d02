"""What all visitors share: models to look with, pictures to look at."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path

from backsight.app.diagnosis import Diagnosis
from backsight.app.eyes import Eyes, public_name
from backsight.app.intake import Uploads
from backsight.app.sources import Pictures, Source
from backsight.core import UserError
from backsight.experiments.subject import Subject, has_chains, open_subject, trained_on
from backsight.shipped import find_shipped, shipped_names

ZOO = ("zoo/detr-prior", "zoo/vit-prior")
"""What is shown when nothing is named: a detector and a classifier, as far as they come with chains."""

NUM_EXAMPLES = 12
"""Pictures at hand, of all data together."""

NUM_AVERAGED = 64
"""Pictures of a data set that its mean image is taken from, where the chains do not keep that of their training."""

_PATH = re.compile(r"(?<![\w.:/])(?:/[\w.@+-]+){2,}/?")


class Observatory:
    """Eyes by name, in the order in which they were named, and the pictures.

    Args:
        eyes: each with the name that :class:`~backsight.app.sources.Pictures` has for its data.
        pictures: those there are.

    Raises:
        UserError: there are no eyes.
    """

    def __init__(self, eyes: Sequence[tuple[Eyes, str]], pictures: Pictures) -> None:
        if not eyes:
            raise UserError("there is no model to look with: name one by --model, with its chains by --chain")
        self.eyes = {each.name: each for each, _ in eyes}
        self.data = {each.name: data for each, data in eyes}
        self.pictures = pictures
        self._diagnoses: dict[str, Diagnosis] = {}
        self._lock = threading.Lock()
        names = list(dict.fromkeys(self.data.values()))
        share = -(-NUM_EXAMPLES // len(names))
        every = [f"{name}/{index}" for name in names for index in range(self._count(name, share))]
        self.examples = every[:NUM_EXAMPLES]

    @property
    def detectors(self) -> list[str]:
        """The names of the models that detect."""
        return [name for name, eyes in self.eyes.items() if eyes.model.spec.task == "detect"]

    def choose(self, name: str) -> Eyes:
        """The eyes called ``name``, the first for "".

        Raises:
            UserError: there are none.
        """
        if not name:
            return next(iter(self.eyes.values()))
        if name not in self.eyes:
            raise UserError(f"no model '{name[:60]}' is offered here: there are {', '.join(self.eyes)}")
        return self.eyes[name]

    def diagnosis(self, name: str) -> Diagnosis:
        """What is known of the errors of the detector called ``name``, which all visitors share.

        Raises:
            UserError: it is not there, or does not detect.
        """
        eyes = self.choose(name)
        if eyes.name not in self.detectors:
            raise UserError(
                f"{eyes.name} detects nothing: errors are told of detectors, as {', '.join(self.detectors)}"
            )
        with self._lock:
            return self._diagnoses.setdefault(eyes.name, Diagnosis(eyes))

    def source(self, name: str, eyes: Eyes) -> Source:
        """The picture called ``name`` as a model gets it; the first example for "".

        Raises:
            UserError: there is none.
        """
        return self.pictures.get(name or self.examples[0], eyes.model.pixels)

    def first(self, data: str) -> Eyes:
        """The first eyes whose own data is called ``data``."""
        return next(self.eyes[name] for name, each in self.data.items() if each == data)

    def _count(self, data: str, share: int) -> int:
        return min(share, len(self.first(data).subject.data))


def open_observatory(
    models: Sequence[str] = (), chains: Sequence[str] = (), data: Sequence[str] = (), device: str = "auto"
) -> Observatory:
    """Load what is to be looked with and at.

    Args:
        models: forward models, those that the chains were trained on by default; the zoo's if there are no chains.
        chains: for each model a run, one chain, or a name; those that ship with the model by default.
        data: one for all models, or one for each; what the chains were trained on by default.
        device: where to compute.

    Raises:
        UserError: something of it is not there, or does not fit.
    """
    pictures = Pictures(Uploads())
    if not models and not chains:
        models = [name for name in ZOO if name in shipped_names() and has_chains(find_shipped(name) or Path())]
    wanted = max(len(models), len(chains))
    eyes: list[tuple[Eyes, str]] = []
    for model, chain, spec in zip(
        _each("--model", models, wanted), _each("--chain", chains, wanted), _each("--data", data, wanted), strict=True
    ):
        subject = open_subject(model, chain, spec, num_images=NUM_AVERAGED, device=device)
        named = spec or trained_on(subject.ensemble) or subject.data.name
        each = Eyes(subject, _free_name(subject, [taken.name for taken, _ in eyes]))
        eyes.append((each, pictures.add(named, subject.model.pixels, subject.data)))
    return Observatory(eyes, pictures)


def _each(option: str, given: Sequence[str], wanted: int) -> list[str | None]:
    """One value for each model: as they are given, the only one again and again, or None."""
    if len(given) not in (0, 1, wanted):
        raise UserError(f"{len(given)} times {option} for {wanted} models: give one for each of them")
    if option != "--data" and len(given) == 1 and wanted > 1:
        raise UserError(f"one {option} for {wanted} models: give one for each of them")
    return list(given) if len(given) == wanted else [given[0] if given else None] * wanted


def _free_name(subject: Subject, taken: Sequence[str]) -> str:
    base = public_name(subject.model.name)
    return next(name for name in [base, *(f"{base} ({number})" for number in range(2, 100))] if name not in taken)


def without_paths(text: str) -> str:
    """A message without the folders of this machine: of every path only its last part is left."""
    return _PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], text)

"""What all visitors share: models, and images to give them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TypeVar

from backsight.app.error_cases import Diagnosis
from backsight.app.model_view import InputImage, ModelView
from backsight.app.state import State
from backsight.app.uploads import PREFIX, Uploads
from backsight.core import Pixels, UserError
from backsight.data import ImageData, open_data
from backsight.experiments.subject import has_chains, open_subject, trained_on
from backsight.hub.card import public_name
from backsight.shipped import find_shipped, shipped_names

S = TypeVar("S", bound=State)

ZOO = ("zoo/detr-prior", "zoo/vit-prior")
"""The models when none is named: a detector and a classifier, as far as they come with chains."""

NUM_EXAMPLES = 12
"""Example images, of all data together."""

NUM_AVERAGED = 64
"""Images of a data set that its mean image is taken from, where the chains do not keep that of their training."""


class ImageLibrary:
    """Every image that has a name: ``world-prior/3`` is the fourth test image of a data set, ``upload-...`` a
    visitor's. Data sets have names of their own here, as a specification may name the machine's folders.

    Args:
        uploads: what visitors uploaded.
    """

    def __init__(self, uploads: Uploads) -> None:
        self.uploads = uploads
        self._specs: dict[str, str] = {}
        self._opened: dict[tuple[str, Pixels], ImageData] = {}
        self._lock = threading.Lock()

    def add(self, spec: str, pixels: Pixels, data: ImageData) -> str:
        """Offer ``data``, the test images of ``spec`` opened for ``pixels``; returns their name."""
        known = {each: name for name, each in self._specs.items()}
        name = known.get(spec) or _unused_name(_data_name(spec), list(self._specs), "{}-{}")
        self._specs[name], self._opened[name, pixels] = spec, data
        return name

    def data(self, name: str, pixels: Pixels) -> ImageData:
        """The data set called ``name`` for a model.

        Raises:
            UserError: there is none.
        """
        with self._lock:
            if name not in self._specs:
                raise UserError(f"no pictures of the name '{name[:40]}' are offered here: take one of the examples")
            if (name, pixels) not in self._opened:
                self._opened[name, pixels] = open_data(self._specs[name], pixels, masks=True).test
            return self._opened[name, pixels]

    def get(self, name: str, pixels: Pixels) -> InputImage:
        """The image called ``name``, for a model.

        Raises:
            UserError: it is not there, or cannot be read.
        """
        if name.startswith(PREFIX):
            return InputImage(name, *self.uploads.find(name).fitted(pixels))
        data_name, _, number = name.rpartition("/")
        data = self.data(data_name, pixels)
        index = int(number) if number.isdecimal() and len(number) < 12 else -1
        if not 0 <= index < len(data):
            raise UserError(f"'{data_name}' has the pictures 0 to {len(data) - 1}: '{number[:20]}' is none of them")
        sample = data[index]
        if sample is None:
            raise UserError(f"picture {index} of '{data_name}' cannot be read: take another")
        return InputImage(name, sample.image.float() / 255, sample.valid, sample.target, dict(data.classes))


class Workspace:
    """The models by name, in the order in which they were named, and the images.

    Args:
        models: each with the name that :class:`ImageLibrary` has for its data.
        images: those there are.

    Raises:
        UserError: there is no model.
    """

    def __init__(self, models: Sequence[tuple[ModelView, str]], images: ImageLibrary) -> None:
        if not models:
            raise UserError("there is no model to show: name one by --model, with its chains by --chain")
        self.models: dict[str, ModelView] = {model.name: model for model, _ in models}
        self.data: dict[str, str] = {model.name: data for model, data in models}
        self.images = images
        self._diagnoses: dict[str, Diagnosis] = {}
        self._lock = threading.Lock()
        names = list(dict.fromkeys(self.data.values()))
        share = -(-NUM_EXAMPLES // len(names))
        counts = {name: min(share, len(self._model_of(name).subject.data)) for name in names}
        self.examples: list[str] = [f"{name}/{index}" for name in names for index in range(counts[name])][:NUM_EXAMPLES]

    @property
    def detectors(self) -> list[str]:
        """The names of the models that detect."""
        return [name for name, model in self.models.items() if model.detects]

    def model(self, name: str) -> ModelView:
        """The model called ``name``, the first for "".

        Raises:
            UserError: there is none.
        """
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UserError(f"no model '{name[:60]}' is offered here: there are {', '.join(self.models)}")
        return self.models[name]

    def with_first_choices(self, state: S) -> S:
        """The state with the first model and example where it names none."""
        chosen = {"model": state.model or self.model("").name}
        if getattr(state, "picture", None) == "":
            chosen["picture"] = self.examples[0]
        return replace(state, **chosen)

    def image(self, name: str, model: ModelView) -> InputImage:
        """The image called ``name`` as a model gets it; the first example for "".

        Raises:
            UserError: there is none.
        """
        return self.images.get(name or self.examples[0], model.model.pixels)

    def example(self, index: int) -> InputImage:
        """One of the examples, as the first model gets it that has its data."""
        name = self.examples[index]
        return self.image(name, self._model_of(name.rpartition("/")[0]))

    def other_example(self, name: str) -> str:
        """The first example that is not the image called ``name``; that image where there is no other."""
        return next((each for each in self.examples if each != name), name)

    def diagnosis(self, name: str) -> Diagnosis:
        """What is known of the errors of the detector called ``name`` (the first for ""), which all visitors share.

        Raises:
            UserError: it is not there, or does not detect.
        """
        if not self.detectors:
            raise UserError("none of these models detects: errors are those of detectors, as zoo/detr-prior")
        model = self.model(name or self.detectors[0])
        if not model.detects:
            known = ", ".join(self.detectors)
            raise UserError(f"{model.name} detects nothing: errors are those of detectors, as {known}")
        with self._lock:
            return self._diagnoses.setdefault(model.name, Diagnosis(model))

    def _model_of(self, data: str) -> ModelView:
        return next(self.models[name] for name, each in self.data.items() if each == data)


def open_workspace(
    models: Sequence[str] = (),
    chains: Sequence[str] = (),
    data: Sequence[str] = (),
    device: str = "auto",
    report: Callable[[str], None] = lambda _: None,
) -> Workspace:
    """Load the models, their chains and their data, as :func:`~backsight.app.serve.serve` names them; ``report`` is
    called with the name of what is loaded next.

    Raises:
        UserError: something of it is not there, or does not fit.
    """
    images = ImageLibrary(Uploads())
    if not models and not chains:
        models = [name for name in ZOO if name in shipped_names() and has_chains(find_shipped(name) or Path())]
    count = max(len(models), len(chains))
    options = _each("--model", models, count), _each("--chain", chains, count), _each("--data", data, count)
    opened: list[tuple[ModelView, str]] = []
    for model, chain, spec in zip(*options, strict=True):
        report(public_name(model or chain or ""))
        subject = open_subject(model, chain, spec, num_images=NUM_AVERAGED, device=device)
        name = _unused_name(public_name(subject.model.name), [view.name for view, _ in opened], "{} ({})")
        spec = spec or trained_on(subject.ensemble) or subject.data.name
        opened.append((ModelView(subject, name), images.add(spec, subject.model.pixels, subject.data)))
    return Workspace(opened, images)


def _each(option: str, given: Sequence[str], count: int) -> list[str | None]:
    """One value for each model: as they are given, the only one again and again, or None."""
    if len(given) == count:
        return list(given)
    if len(given) > 1 or (given and option != "--data"):
        raise UserError(f"{len(given)} times {option} for {count} models: give one for each of them")
    return [given[0] if given else None] * count


def _data_name(spec: str) -> str:
    """``coco:/data/photos:val2017`` -> ``coco-photos-val2017``: no folder above the last is shown."""
    parts = [PurePath(part).name or part.strip("/") for part in spec.split(":")]
    return "-".join(part for part in parts if part)


def _unused_name(name: str, taken: Sequence[str], numbered: str) -> str:
    found, number = name, 2
    while found in taken:
        found, number = numbered.format(name, number), number + 1
    return found

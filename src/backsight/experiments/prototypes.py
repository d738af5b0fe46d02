"""Which colours appear where there were none: greyscale inputs and their reconstructions (paper, app. A, Fig. 11)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from backsight.data import Batch
from backsight.data.world import World
from backsight.data.world.scenes import class_hues
from backsight.devices import exact
from backsight.experiments.drawing import lines_of, models_of, pictures_of, points, title_of
from backsight.experiments.objects import box_notes, category_mask, object_labels
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject
from backsight.figures import ErrorPoint, Pages, Panel, pages, panel_part, picture_parts
from backsight.perturb import VISIBLE, chroma, colour_vector, hue_unit, recolour, region_mean
from backsight.results import Measurement, Picture, Result
from backsight.validation import AnyNumber

ORIGINAL, GREY = "original", "grey input"
"""The stage of what is measured on the images in their own colours, and of the pictures that went in."""

EVERY, ALL = "all", -1
"""The class, and its label, of the mean over all classes in an image."""

OWN, OTHERS = "own class", "other classes"
"""Against which hue colours are held: that of the objects' class, or the average over those of all others."""


def measure(subject: Subject, *, num_classes: AnyNumber = 8, num_pictures: AnyNumber = 3) -> Result:
    """Reconstruct greyscale images and measure the colour inside the objects, class by class.

    Labels: ``model``, ``class`` (a name, or ``all``), ``stage`` (``original``: the images in their own colours),
    ``metric`` and ``against``:

    ``saturation``
        How saturated the objects are, weighted by value: the sum of chroma over that of value; 0 is grey, 1 pure.
    ``alignment``
        The mean of ``cos(h - h_class)`` over the objects' pixels, weighted by chroma, with ``h_class`` the hue of their
        class (``against`` = ``own class``), or the mean of this over all other classes (``other classes``): 1 if
        exactly the class's hue appears, 0 if any other might, -1 for the opposite. What an inverse paints
        everywhere alike aligns with other classes as much. Colours too faint to be seen count in proportion.

    A class's hue is the law's in the drawn world; elsewhere the mean hue of its objects in these images.

    Args:
        num_classes: the most frequent classes are reported one by one, too.
        num_pictures: how many images are kept as pictures.
    """
    hues = hues_of_classes(subject)
    classes = {label: subject.data.classes.get(label, str(label)) for label in _frequent(subject, num_classes)}
    reported = {ALL: EVERY, **classes}
    measurements = []
    for (stage, metric, against, label), values in subject.gather(lambda b: _answers(subject, b, hues)).items():
        if label in reported:
            labels = {"class": reported[label], "stage": stage, "metric": metric}
            measurements.append(Measurement({**labels, **({"against": against} if against else {})}, values))
    settings = {"num_classes": num_classes, "num_pictures": num_pictures}
    return subject.result("prototypes", measurements, _pictures(subject, num_pictures), settings, box_notes(subject))


def hues_of_classes(subject: Subject) -> dict[int, Tensor]:
    """The hue of every class that occurs, as a complex unit vector; classes without any colour are left out.

    The drawn world's law says it; elsewhere it is that of the mean colour vector of all objects of the class, each
    image counting alike.
    """
    if isinstance(subject.data, World):
        return dict(enumerate(hue_unit(class_hues(subject.data.law))))
    sums: dict[int, Tensor] = {}
    for batch in subject.batches:
        for image, _, label, mask in _regions(batch):
            sums[label] = sums.get(label, torch.zeros((), dtype=torch.complex128)) + colour_vector(image, mask).cpu()
    return {label: total / total.abs() for label, total in sums.items() if total.abs() > 0}


def _regions(batch: Batch) -> Iterator[tuple[Tensor, int, int, Tensor]]:
    """(image, its index, class, mask ``H W``) of every class in every image."""
    size = (batch.images.shape[-2], batch.images.shape[-1])
    for index, target in enumerate(batch.targets):
        for label in object_labels(target).unique().tolist():
            mask = category_mask(target, size, label)
            if mask is not None:
                yield batch.images[index], index, label, mask.to(batch.images.device)


def _frequent(subject: Subject, num: int) -> list[int]:
    targets = [target for batch in subject.batches for target in batch.targets]
    images = Counter(label for target in targets for label in object_labels(target).unique().tolist())
    return sorted(label for label, _ in images.most_common(num))


Key = tuple[str, str, str, int]
"""(stage, metric, against, class)."""


@torch.no_grad()
def _answers(subject: Subject, batch: Batch, hues: Mapping[int, Tensor]) -> dict[Key, Tensor]:
    """``S B`` for each key, NaN where an image has no object of the class."""
    features = subject.model.features(recolour(batch.images, "grey"), subject.stages, batch.valid)
    shown = {ORIGINAL: batch.images[None]} | {stage: subject.invert(features[stage], stage) for stage in subject.stages}
    labels = sorted(hues)
    kinds = (("saturation", ""), ("alignment", OWN), ("alignment", OTHERS))
    tables = {
        (stage, *kind, label): torch.full((len(images), len(batch.ids)), math.nan, dtype=torch.float64)
        for stage, images in shown.items()
        for kind in kinds
        for label in labels
    }
    for _, index, label, mask in _regions(batch):
        if label in hues:
            others = [hues[each] for each in labels if each != label]
            for stage, images in shown.items():
                for kind, values in colour_of(images[:, index], mask, hues[label], others).items():
                    tables[stage, *kind, label][:, index] = values.cpu()
    every = {
        (stage, *kind, ALL): torch.stack([tables[stage, *kind, label] for label in labels]).nanmean(0)
        for stage in shown
        for kind in kinds
        if labels
    }
    return every | tables


def colour_of(
    images: Tensor, mask: Tensor, hue: Tensor, others: Sequence[Tensor] = ()
) -> dict[tuple[str, str], Tensor]:
    """The colour of a region: (metric, against) -> ``...``.

    Args:
        images: ``... 3 H W``, RGB in [0, 1].
        mask: the region, ``H W`` bool.
        hue: of its class, a complex unit vector.
        others: those of all other classes; without any, the alignment with them is NaN.
    """
    seen = region_mean(exact(chroma(images)), mask)
    value = region_mean(exact(images.amax(-3)), mask)
    vector = colour_vector(images, mask).to(seen.device) / seen.clamp(min=VISIBLE)
    other = torch.stack(list(others)).mean() if others else torch.tensor(complex(math.nan, math.nan))
    return {
        ("saturation", ""): seen / value.clamp(min=1e-9),
        ("alignment", OWN): (vector * hue.conj().to(vector)).real,
        ("alignment", OTHERS): (vector * other.conj().to(vector)).real,
    }


@torch.no_grad()
def _pictures(subject: Subject, num: int) -> Iterator[Picture]:
    """The first images, grey, and as the first seed paints them again."""
    if num == 0:
        return  # no model has to take a batch of no images
    batch = subject.batches[0].part(0, num)
    images, grey = batch.images, recolour(batch.images, "grey")
    features = subject.model.features(grey, subject.stages, batch.valid)
    painted = {ORIGINAL: images, GREY: grey}
    painted |= {stage: subject.invert(features[stage], stage)[0] for stage in subject.stages}
    for stage, pictures in painted.items():
        for index, picture in enumerate(pictures):
            shown = batch.cut(index, picture).cpu()
            yield Picture({"stage": stage, "image": index}, shown)


# ---- the figure


def draw(result: Result) -> Pages:
    """Alignment and saturation over stages, and the last stage's alignment by class; under them the first images."""
    models = models_of(result)
    alignment = lines_of(result, metric="alignment", against=OWN, **{"class": EVERY})
    saturation = lines_of(result, metric="saturation", **{"class": EVERY})
    by_class = {title_of(result, model): _by_class(result, model) for model in models}
    panels = [
        Panel("Is it the class's own hue?", alignment, {"": 0.0}, label="alignment", limits=(-0.5, 1.05)),
        Panel("How much colour appears?", saturation, label="saturation"),
        Panel("Class by class, last stage", by_class, {"": 0.0}, label="alignment", limits=(-1.05, 1.05), joined=False),
    ]
    return pages([panel_part(panels), *picture_parts([pictures_of(result, model, "image") for model in models])])


def _by_class(result: Result, model: str) -> list[ErrorPoint]:
    found = result.select(model=model, metric="alignment", against=OWN)
    last = found[-1].labels["stage"] if found else ""
    return points([each for each in found if each.labels["stage"] == last and each.labels["class"] != EVERY], "class")


PROTOTYPES = Experiment(
    "prototypes",
    "Which colours appear in objects that were grey?",
    measure,
    draw,
    needs=("boxes",),
    reading=(
        "The colours that come back for objects which were shown in grey. A class that always gets its own colour is "
        "painted from what the inverse has learned of that class."
    ),
)

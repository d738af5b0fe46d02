"""From the labels of a data set to those of a model: both count their classes, and often not alike.

COCO's category ids go from 1 to 90 with gaps, as DETR's classes do, but many detectors count their 80 classes from 0
on; the folders of a part of ImageNet are numbered anew. Counted by position, every answer would be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from backsight.data.base import Target

Vocabulary = Mapping[int, Sequence[str]]
"""Every class that a model tells apart -> what it is called: several names, or none where nobody knows."""

SAME = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}
"""Pascal's words for classes of COCO, which some detectors of COCO answer with."""


@dataclass(frozen=True)
class Labelling:
    """The labels of some data as a model counts them: the names of the ``classes`` by them, and the ``translation``.

    ``known`` is how many labels the model has.
    """

    classes: Mapping[int, str]
    translation: Mapping[int, int]
    known: int

    @classmethod
    def of(cls, classes: Mapping[int, str], vocabulary: Vocabulary) -> Self:
        """That of data with ``classes``, for a model of the ``vocabulary``; an empty one leaves all as it is."""
        translation = translate(classes, vocabulary)
        names = {translation.get(label, label): name for label, name in sorted(classes.items())}
        return cls(names, translation, outside(vocabulary))

    def of_model(self, target: Target) -> Target:
        """The same target in the labels of the model: what the whole image shows is unknown where the model has no
        such class; objects keep a label that no answer has."""
        if not self.translation:
            return target
        new = [self.translation.get(label, label) for label in target.labels.tolist()]
        labels = torch.tensor(new, dtype=torch.int64)
        whole = None if target.label is None else self.translation.get(target.label, target.label)
        return replace(target, labels=labels, label=whole if whole is None or whole < self.known else None)


def translate(classes: Mapping[int, str], vocabulary: Vocabulary) -> dict[int, int]:
    """The labels of a data set -> those of a model whose class has that name; empty where they are the same already.

    A class that the model has not gets a label beyond all of the model's (:func:`outside`). Without a name in common
    the classes are taken in order if there are as many, and as they are numbered if the model's have no names.
    """
    if not classes or not vocabulary:
        return {}
    called: dict[str, set[int]] = {}
    for index, names in vocabulary.items():
        for name in map(_plain, names):
            called.setdefault(name, set()).add(index)
    by_name = {name: index for name, (index, *others) in called.items() if not others}
    labels = sorted(classes)
    common = {label: by_name[name] for label in labels if (name := _plain(classes[label])) in by_name}
    if not common and len(classes) == len(vocabulary):
        common = dict(zip(labels, sorted(vocabulary), strict=True))
    if not common and not called:
        return {}
    strangers = (label for label in labels if label not in common)
    found = common | {label: outside(vocabulary) + place for place, label in enumerate(strangers)}
    return {} if all(label == own for label, own in found.items()) else found


def outside(vocabulary: Vocabulary) -> int:
    """The first label that is none of the model's."""
    return max(vocabulary, default=-1) + 1


def _plain(name: str) -> str:
    """``Dining table`` and ``diningtable`` are the same."""
    letters = re.sub(r"[\W_]", "", name.casefold())
    return SAME.get(letters, letters)

"""What a model calls the classes that it tells apart."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from backsight.core import Classes
from backsight.engine import StagedModel

NO_NAME = re.compile(r"(LABEL_\d+|N/?A|)", re.IGNORECASE)
"""What stands in configurations for a class whose name nobody gave."""


@torch.no_grad()
def vocabulary(model: StagedModel) -> dict[int, tuple[str, ...]]:
    """Every class of ``model`` -> its names: the label, each of its synonyms, and of ImageNet's the WordNet id.

    Found by a pass over a black image. Empty where the model predicts nothing.
    """
    if model.read is None:
        return {}
    answer = model.predict(model.answer(torch.zeros(1, 3, *model.pixels.size, device=model.device), ()))
    if isinstance(answer, Classes):
        number = answer.logits.shape[-1]
        own = {index: _names(answer.labels.get(index, "")) for index in range(number)}
        imagenet = _imagenet(number)
        named = {index: names for index, names in own.items() if names}
        if any(set(names).isdisjoint(imagenet.get(index, ())) for index, names in named.items()):
            return own  # as many classes as ImageNet, and others
        return {index: names + imagenet.get(index, ()) for index, names in own.items()}
    return {index: _names(name) for index, name in answer[0].labels.items()}


def _names(label: str) -> tuple[str, ...]:
    """``tench, Tinca tinca`` is one name and each of its parts."""
    parts = dict.fromkeys([label, *label.split(",")])
    return tuple(part.strip() for part in parts if not NO_NAME.fullmatch(part.strip()))


def _imagenet(number: int) -> Mapping[int, tuple[str, ...]]:
    """The names of ImageNet's classes, where it, or one of its larger kinds, has so many."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": number})
    if subset is None:
        return {}
    info = ImageNetInfo(subset)
    return {
        index: (info.index_to_label_name(index), *_names(info.index_to_description(index))) for index in range(number)
    }

"""Which pixels of an image belong to its objects, as experiments count them: crowds are no objects."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from torch import Tensor

from backsight.core import UserError
from backsight.data import Target
from backsight.data.outlines import fill_boxes as fill_boxes
from backsight.experiments.subject import Subject


def object_masks(target: Target, size: tuple[int, int]) -> Tensor:
    """The masks of the objects that are no crowd, ``n H W`` bool; filled boxes where there are no masks.

    Args:
        target: of an image.
        size: of the image, (H, W) in pixels.
    """
    masks = fill_boxes(target.boxes, size) if target.masks is None else target.masks
    return masks[~target.crowd]


def object_labels(target: Target) -> Tensor:
    """The classes of the same objects, ``n``."""
    return target.labels[~target.crowd]


def box_notes(subject: Subject) -> list[str]:
    """What a reader must know where boxes stand for objects: the data have no outlines."""
    with_masks = any(target.masks is not None for batch in subject.batches for target in batch.targets)
    return [] if with_masks else [f"{subject.data.name} has no outlines of objects: their boxes stand for them"]


def category_mask(target: Target, size: tuple[int, int], label: int | None = None) -> Tensor | None:
    """The pixels of all objects of one class, ``H W`` bool; None where there are none.

    Args:
        target: of an image.
        size: of the image, (H, W) in pixels.
        label: the class; that of the image's largest object by default.
    """
    masks, labels = object_masks(target, size), object_labels(target)
    if len(masks) == 0:
        return None
    wanted = labels[masks.flatten(1).sum(1).argmax()] if label is None else label
    mask = masks[labels == wanted].any(0)
    return mask if mask.any() else None


def category_masks(target: Target, size: tuple[int, int], label: int | None = None) -> list[Tensor]:
    """The pixels of each class in an image, ``H W`` bool, the largest first; of one class alone if ``label`` is given.

    Args:
        target: of an image.
        size: of the image, (H, W) in pixels.
        label: of a class.
    """
    labels = object_labels(target).unique().tolist() if label is None else [label]
    masks = [mask for each in labels if (mask := category_mask(target, size, each)) is not None]
    return sorted(masks, key=lambda mask: -int(mask.sum()))


def find_class(classes: Mapping[int, str], name: str) -> int:
    """The label of the class called ``name``.

    Raises:
        UserError: there is none; the nearest names are offered.
    """
    for label, known in classes.items():
        if known == name:
            return label
    nearest = difflib.get_close_matches(name, classes.values(), n=3) or sorted(classes.values())[:5]
    raise UserError(f"the data has no class '{name}': the nearest of its {len(classes)} are {', '.join(nearest)}")

"""Edits of drawn scenes, one truth at a time: what changes, where, and what was there before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backsight.data.world import MIN_VISIBLE, World
from backsight.data.world.render import Rendering, render
from backsight.data.world.scenes import Scenes, recolour, with_backdrop_of, without_clutter

CHANGED = 6
"""A pixel belongs to what an edit changed if one of its colours moved by this much, of 255."""


@dataclass(frozen=True)
class Edit:
    """B scenes ``before`` and ``after`` one thing in them changed, ``B 3 H W`` in [0, 1], and the ``region`` ``B H W``
    (bool) where it did; empty in scenes that do not have the thing."""

    before: Tensor
    after: Tensor
    region: Tensor

    def to(self, device: torch.device) -> Edit:
        """The same on ``device``."""
        return Edit(self.before.to(device), self.after.to(device), self.region.to(device))


def edit(world: World, indices: Sequence[int], factor: str, hues: Tensor | None = None) -> Edit:
    """The scenes ``indices`` of ``world`` with ``factor``, one of :data:`FACTORS`, changed.

    ``hues`` ``B`` (degrees) first gives the object in question these colours, whatever the law says: before and
    after then differ as they would, but the scenes carry no rule of colour.
    """
    scenes = world.scenes(indices)
    before = render(scenes, world.size)
    item, seen = _best_seen(before)
    if hues is not None:
        scenes = recolour(scenes, item, hues)
        before = render(scenes, world.size)
    after = render(FACTORS[factor](world, scenes, indices, item), world.size)
    region = _region(factor, before, after, item) & seen[:, None, None]
    return Edit(before.images / 255, after.images / 255, region)


def _best_seen(rendering: Rendering) -> tuple[Tensor, Tensor]:
    """The object of each scene with most pixels in view, ``B``, and whether it is labelled at all."""
    areas = rendering.masks.flatten(2).sum(2) * (rendering.visible >= MIN_VISIBLE)
    most, item = areas.max(1)
    return item, most > 0


def _other_hue(_: World, scenes: Scenes, __: Sequence[int], item: Tensor) -> Scenes:
    hues = scenes.objects.hue[torch.arange(len(scenes)), item]
    return recolour(scenes, item, hues + 180)


def _without_object(_: World, scenes: Scenes, __: Sequence[int], item: Tensor) -> Scenes:
    present = scenes.objects.present.clone()
    present[torch.arange(len(scenes)), item] = False
    return replace(scenes, objects=replace(scenes.objects, present=present))


def _other_background(world: World, scenes: Scenes, indices: Sequence[int], _: Tensor) -> Scenes:
    # From the far end of the same stream: no scene is its own neighbour.
    return with_backdrop_of(scenes, world.scenes([world.length + index for index in indices]))


def _without_clutter(_: World, scenes: Scenes, __: Sequence[int], ___: Tensor) -> Scenes:
    return without_clutter(scenes)


def _region(factor: str, before: Rendering, after: Rendering, item: Tensor) -> Tensor:
    moved = (before.images.int() - after.images.int()).abs().amax(1) >= CHANGED
    rows = torch.arange(len(item))
    if factor in ("hue", "object"):
        return before.masks[rows, item]
    return moved & ~before.masks.any(1) if factor == "background" else moved


FACTORS: dict[str, Callable[[World, Scenes, Sequence[int], Tensor], Scenes]] = {
    "hue": _other_hue,
    "object": _without_object,
    "background": _other_background,
    "clutter": _without_clutter,
}
"""What is changed: the hue of the object that is seen best (to the opposite one), that object itself (taken away),
the background (another scene's texture and colours), the clutter (all of it taken away)."""

"""The drawn world as a data set: textured scenes whose every truth is known, made on the fly from (seed, index)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backsight.core import UserError
from backsight.data.base import Batch, PackedTargets, Sample, Splits, unpack
from backsight.data.world.render import Rendering, render
from backsight.data.world.scenes import LAWS, Law, Scenes, class_names, sample_scenes

VERSION = 1
"""Raised whenever any picture or label of the world changes, and part of every fingerprint."""

MIN_VISIBLE = 0.35
"""An object of which less is seen has no label: nobody could name it."""

LENGTHS = (100_000, 1_000, 2_000)
"""Scenes in training, validation and test, unless told otherwise."""

MOST = 2**32
"""The largest seed."""


@dataclass(frozen=True)
class World:
    """Scenes 0 to ``length - 1`` of the stream ``seed`` under a ``law`` of colour, drawn at ``size`` (H, W) pixels.

    ``single`` is the variant for classifiers: exactly one object, larger, and ``target.label`` its class.
    ``attributes`` of a target are, for n objects: ``hue`` (degrees), ``prototypical`` (it wears its class's hue),
    ``rotation`` (degrees), ``size`` (half its width, in units of the image's shorter side), ``visible`` (the part that
    is seen, 0..1) and ``item`` (its number in :class:`~backsight.data.world.scenes.Scenes`, as
    :func:`~backsight.data.world.scenes.recolour` takes it).

    Raises:
        UserError: there is no such law.
    """

    law: Law = "prior"
    size: tuple[int, int] = (96, 96)
    seed: int = 0
    length: int = LENGTHS[0]
    single: bool = False

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise UserError(f"no law of colour '{self.law}': there are {', '.join(LAWS)}")

    @property
    def name(self) -> str:
        """The user's word for it, as :func:`open_world` reads it."""
        return f"world:{self.law}" + (":single" if self.single else "")

    @property
    def classes(self) -> Mapping[int, str]:
        """The names of the eight classes, by label."""
        return class_names(self.law)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not -self.length <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return self.samples([index % self.length])[0]

    def samples(self, indices: Sequence[int]) -> list[Sample]:
        """Many samples at once, which is much faster than one by one."""
        scenes = self.scenes(indices)
        return label(scenes, render(scenes, self.size), [self._id(index) for index in indices])

    def batch(self, indices: Sequence[int]) -> Batch:
        """The scenes ``indices`` as one batch, the collated samples but for rounding."""
        scenes = self.scenes(indices)
        rendering = render(scenes, self.size)
        samples = label(scenes, rendering, [self._id(index) for index in indices])
        return Batch(rendering.images / 255, tuple(s.id for s in samples), tuple(s.target for s in samples))

    def scenes(self, indices: Sequence[int]) -> Scenes:
        """The parameters of the scenes ``indices``: change them, and draw what would have been seen."""
        return sample_scenes(self.law, self.seed, indices, self.single)

    def fingerprint(self) -> str:
        """A digest of everything that decides what is seen and labelled."""
        text = repr((VERSION, self.law, tuple(self.size), self.seed, self.length, self.single))
        return hashlib.sha256(text.encode()).hexdigest()

    def _id(self, index: int) -> str:
        return f"{self.law}-{'single-' if self.single else ''}{self.seed}-{index}"


def label(scenes: Scenes, rendering: Rendering, ids: Sequence[str]) -> list[Sample]:
    """Pictures and their truth: every object of which :data:`MIN_VISIBLE` is seen, boxed as it is seen."""
    known = rendering.visible >= MIN_VISIBLE
    row, item = known.nonzero().unbind(1)
    objects = scenes.objects
    columns = {
        "boxes": _boxes(rendering.masks)[row, item],
        "labels": scenes.classes[row, item],
        "crowd": torch.zeros(len(row), dtype=torch.bool),
        "masks": rendering.masks[row, item],
        "hue": objects.hue[row, item],
        "prototypical": scenes.prototypical[row, item],
        "rotation": objects.rotation[row, item],
        "size": objects.size[row, item],
        "visible": rendering.visible[row, item],
        "item": item,
    }
    whole = scenes.classes[:, 0].tolist() if scenes.single else [None] * len(scenes)
    targets = unpack(PackedTargets(known.sum(1).tolist(), whole, columns))
    return [Sample(*each) for each in zip(rendering.images, ids, targets, strict=True)]


def _boxes(masks: Tensor) -> Tensor:
    """The tight boxes of ``masks`` ``B K H W``: ``B K 4`` (x0, y0, x1, y1); nonsense where a mask is empty."""
    ends = []
    for axis in (2, 3):
        occupied = masks.view(torch.uint8).amax(axis)  # ten times faster than any()
        first, after = occupied.argmax(-1), occupied.shape[-1] - occupied.flip(-1).argmax(-1)
        ends += [first, after]
    left, right, top, bottom = ends
    return torch.stack([left, top, right, bottom], dim=-1).float()


def open_world(text: str, size: tuple[int, int] = (96, 96), lengths: tuple[int, int, int] = LENGTHS) -> Splits:
    """The splits that ``text`` names: ``world``, ``world:independent``, ``world:prior:single``, ``world:prior:7``.

    The number is a seed (0 unless given). The splits of seed s are the streams 3s, 3s + 1 and 3s + 2, so no scene is
    in two splits, of this seed or of another.

    Raises:
        UserError: a part of ``text`` is no law, not ``single`` and no number, or there are two of a kind.
    """
    law, form = "prior", f"world[:{'|'.join(LAWS)}][:single][:SEED]"
    found: dict[str, str] = {}
    for word in text.split(":")[1:]:
        if word in LAWS:
            law, kind = word, "law"
        elif word == "single" or word.isdecimal():
            kind = "single" if word == "single" else "seed"
        else:
            raise UserError(f"'{word}' in '{text}' is no world: say {form}")
        if kind in found:
            raise UserError(f"'{text}' has '{found[kind]}' and '{word}', where one is meant: say {form}")
        found[kind] = word
    seed, single = int(found.get("seed", 0)), "single" in found
    if seed > MOST:
        raise UserError(f"{seed} in '{text}' is no seed: the largest is {MOST}")
    streams = (World(law, size, 3 * seed + k, length, single) for k, length in enumerate(lengths))
    return Splits(*streams)

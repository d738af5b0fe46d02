"""What the drawn world contains: the laws of colour, and the parameters of scenes before anything is drawn.

Every number of a scene comes from its (seed, index, slot) by a hash, so a scene is the same alone, in any batch, in
any order and, up to the rounding of its pixels, on any machine. The law only decides the hues: under two laws, the
same (seed, index) gives the same scene in other colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backsight.data.world.shapes import CLUTTER, NAMES, SHAPES

Law = Literal["prior", "independent", "defining"]
"""How colour and class go together. ``prior``: 85 % of a class's objects wear its hue. ``independent``: hue says
nothing of the class. ``defining``: pairs of classes share a shape and differ in hue alone."""

LAWS: tuple[Law, ...] = get_args(Law)

PRIOR = 0.85
"""The share of a class's objects that wear its hue under the law ``prior``."""

MAX_OBJECTS = 4
NUM_TEXTURES = 24
NUM_CLASSES = 8

_JITTER = 10.0  # degrees either side of a class's hue
_FAR = 30.0  # an object that does not wear its class's hue is at least this far from it, in degrees
_COUNTS = (0.06, 0.24, 0.30, 0.24, 0.16)  # how often a scene has 0, 1, 2, 3, 4 objects
_COLOURS = ("red", "orange", "lime", "green", "cyan", "blue", "violet", "pink")
_BEHIND, _FRONT = 3, 1  # pieces of clutter behind and in front of the objects, at most


@dataclass(frozen=True)
class Pieces:
    """K things to paint, in order, in each of B scenes; all tensors are ``B K``, ``centre`` is ``B K 2`` (x, y).

    Lengths are in units of the image's shorter side, ``centre`` in units of its width and height, angles in degrees.
    ``shape`` indexes :data:`backsight.data.world.shapes.NAMES`; ``saturation`` and ``value`` (HSV) are in [0, 1].
    """

    present: Tensor
    shape: Tensor
    centre: Tensor
    size: Tensor
    rotation: Tensor
    hue: Tensor
    saturation: Tensor
    value: Tensor


@dataclass(frozen=True)
class Backdrop:
    """The backgrounds of B scenes: a turned window on a texture, between two colours.

    ``texture`` ``B`` (which of :data:`NUM_TEXTURES`), ``angle`` ``B`` (degrees), ``zoom`` ``B`` (the part of the
    texture in view, 0..1), ``shift`` ``B 2`` (-1..1: as far as the texture reaches), ``colours`` ``B 2 3`` (HSV).
    """

    texture: Tensor
    angle: Tensor
    zoom: Tensor
    shift: Tensor
    colours: Tensor


@dataclass(frozen=True)
class Scenes:
    """The parameters of B scenes. ``classes`` and ``prototypical`` (wears its class's hue) are ``B K`` for the K
    ``objects``, ``light`` ``B`` is where the light comes from (degrees)."""

    law: Law
    single: bool
    backdrop: Backdrop
    behind: Pieces
    objects: Pieces
    front: Pieces
    classes: Tensor
    prototypical: Tensor
    light: Tensor

    def __len__(self) -> int:
        return len(self.light)


def class_names(law: Law) -> dict[int, str]:
    """The names of the eight classes under ``law``, by label."""
    shapes = list(SHAPES)
    if law != "defining":
        return dict(enumerate(shapes))
    colours = _COLOURS[0::4] + _COLOURS[1::4] + _COLOURS[2::4] + _COLOURS[3::4]
    return {label: f"{colour} {shapes[label // 2]}" for label, colour in enumerate(colours)}


def class_hues(law: Law) -> Tensor:
    """The hue each class is known by, in degrees, ``8``: round the circle, opposite within a pair of ``defining``."""
    label = torch.arange(NUM_CLASSES)
    step = 360.0 / NUM_CLASSES
    return label * step if law != "defining" else (label // 2) * step + (label % 2) * 180.0


def hue_distance(one: Tensor, other: Tensor) -> Tensor:
    """How far two hues are from each other round the circle, in degrees, 0..180."""
    return ((one - other + 180) % 360 - 180).abs()


def uniforms(seed: int, indices: Sequence[int] | NDArray[np.int64], num: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) that depend on (seed, index, slot) alone: ``len(indices) num``.

    The hash is splitmix64's (Steele, Lea and Flood 2014) over the three counters: no generator has a state.
    """
    row = _mix(np.asarray(indices, dtype=np.uint64) ^ _mix(np.array([seed], dtype=np.uint64)))
    slots = _mix(row[:, None] + np.arange(1, num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (slots >> np.uint64(11)).astype(np.float64) / 2.0**53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class _Dice:
    """Hands out the uniform numbers of a batch of scenes, slot by slot."""

    def __init__(self, seed: int, indices: Sequence[int], num: int) -> None:
        self.numbers = torch.from_numpy(uniforms(seed, indices, num)).float()
        self.used = 0

    def take(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """``B *shape`` uniform in [low, high)."""
        num = int(np.prod(shape))
        taken = self.numbers[:, self.used : self.used + num]
        assert taken.shape[1] == num, "more numbers are taken than were made"
        self.used += num
        return low + (high - low) * taken.reshape(-1, *shape)

    def choose(self, num: int, *shape: int) -> Tensor:
        """``B *shape`` whole numbers below ``num``."""
        return (self.take(*shape) * num).long().clamp(max=num - 1)


def sample_scenes(law: Law, seed: int, indices: Sequence[int], single: bool = False) -> Scenes:
    """The scenes ``indices`` of the world (``law``, ``seed``): ``len(indices)`` scenes of at most four objects.

    ``single`` gives scenes of exactly one object, larger and nearer the middle, for classifiers.
    """
    dice = _Dice(seed, indices, 192)
    backdrop, light = _sample_backdrop(dice), dice.take(low=0, high=360)
    objects, classes, prototypical = _sample_objects(dice, law, single)
    behind, front = _sample_clutter(dice, _BEHIND, 0.65), _sample_clutter(dice, _FRONT, 0.25)
    return Scenes(law, single, backdrop, behind, objects, front, classes, prototypical, light)


def _sample_backdrop(dice: _Dice) -> Backdrop:
    colours = torch.stack(
        [dice.take(2, high=360), dice.take(2, low=0.05, high=0.45), dice.take(2, low=0.25, high=0.95)], dim=-1
    )
    return Backdrop(
        texture=dice.choose(NUM_TEXTURES),
        angle=dice.take(low=0, high=360),
        zoom=dice.take(low=0.30, high=0.68),
        shift=dice.take(2, low=-1, high=1),
        colours=colours,
    )


def _sample_objects(dice: _Dice, law: Law, single: bool) -> tuple[Pieces, Tensor, Tensor]:
    num = 1 if single else MAX_OBJECTS
    classes = dice.choose(NUM_CLASSES, num)
    count = torch.searchsorted(torch.tensor(_COUNTS).cumsum(0)[:-1], dice.take(1), right=True)
    hue, prototypical = _sample_hues(dice, law, classes)
    size = dice.take(num, low=0.22, high=0.36) if single else 0.12 * 2 ** dice.take(num)
    objects = Pieces(
        present=torch.ones_like(classes, dtype=torch.bool) if single else torch.arange(num) < count,
        shape=classes // 2 if law == "defining" else classes,
        centre=_sample_centres(dice, size),
        size=size,
        rotation=dice.take(num, low=-45, high=45),
        hue=hue,
        saturation=dice.take(num, low=0.70, high=1.0),
        value=dice.take(num, low=0.60, high=0.87),  # in full light still below 1: shading never bends the hue
    )
    return objects, classes, prototypical


def _sample_hues(dice: _Dice, law: Law, classes: Tensor) -> tuple[Tensor, Tensor]:
    own = class_hues(law)[classes]
    num = classes.shape[1]
    choice, near, away = dice.take(num), dice.take(num, low=-_JITTER, high=_JITTER), dice.take(num)
    if law == "independent":
        hue = 360 * away
        return hue, hue_distance(hue, own) <= _JITTER
    prototypical = choice < (PRIOR if law == "prior" else 1.0)
    far = _FAR + (360 - 2 * _FAR) * away
    return (own + torch.where(prototypical, near, far)) % 360, prototypical


def _sample_centres(dice: _Dice, size: Tensor, candidates: int = 3) -> Tensor:
    # Of a few candidates, each object takes the one furthest from those before it: they overlap, but seldom wholly.
    num = size.shape[1]
    margin = 0.85 * size[:, :, None, None]
    places = margin + (1 - 2 * margin) * dice.take(num, candidates, 2)
    chosen = [places[:, 0, 0]]
    for k in range(1, num):
        gaps = torch.stack([(places[:, k] - centre[:, None]).norm(dim=-1) for centre in chosen]).amin(0)
        best = gaps.argmax(1)[:, None, None].expand(-1, 1, 2)
        chosen.append(places[:, k].gather(1, best)[:, 0])
    return torch.stack(chosen, dim=1)


def _sample_clutter(dice: _Dice, num: int, often: float) -> Pieces:
    stick = NAMES.index("stick")
    is_stick = dice.take(num) < 0.5
    blob = stick + 1 + dice.choose(len(CLUTTER) - 1, num)
    size = dice.take(num)
    return Pieces(
        present=dice.take(num) < often,
        shape=torch.where(is_stick, stick, blob),
        centre=dice.take(num, 2, low=0.02, high=0.98),
        size=torch.where(is_stick, 0.08 + 0.16 * size, 0.04 + 0.08 * size),
        rotation=dice.take(num, low=0, high=360),
        hue=dice.take(num, low=0, high=360),
        saturation=dice.take(num, low=0.1, high=0.9),
        value=dice.take(num, low=0.3, high=0.9),
    )


def recolour(scenes: Scenes, item: int | Tensor, hue: float | Tensor) -> Scenes:
    """The same scenes with object number ``item`` (one number, or ``B``) in another ``hue`` (degrees; one, or ``B``).

    Nothing else changes, so the difference of the two renderings is the effect of that hue alone. ``classes`` stay what
    they were: under the law ``defining`` the truth may become the other class of the pair.
    """
    rows = torch.arange(len(scenes))
    hues = scenes.objects.hue.clone()
    hues[rows, torch.as_tensor(item).expand(len(scenes))] = torch.as_tensor(hue, dtype=hues.dtype) % 360
    own = class_hues(scenes.law)[scenes.classes]
    prototypical = hue_distance(hues, own) <= _JITTER
    return replace(scenes, objects=replace(scenes.objects, hue=hues), prototypical=prototypical)


def with_backdrop_of(scenes: Scenes, other: Scenes) -> Scenes:
    """The same scenes before the textures and colours of ``other``'s backgrounds."""
    return replace(scenes, backdrop=other.backdrop)


def without_clutter(scenes: Scenes) -> Scenes:
    """The same scenes with nothing in them but background and objects."""
    behind, front = (replace(p, present=torch.zeros_like(p.present)) for p in (scenes.behind, scenes.front))
    return replace(scenes, behind=behind, front=front)

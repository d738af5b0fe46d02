"""The types that flow, and the legend of their shapes.

Shapes in every docstring of the package use these letters:

=======  ==============================================================================
``B``    images in a batch
``N``    tokens of a representation: prefix tokens first, then the grid row by row
``D``    width of a token
``h w``  the grid: rows and columns of tokens (``N = prefix + h * w`` for one grid)
``H W``  height and width of the image in pixels
``C``    classes, "no object" included where a detector has one
``Q``    object queries of a detector
=======  ==============================================================================

Images are RGB, float, in [0, 1], ``B 3 H W``, everywhere outside ``models/``.
Features are ``B N D``, whatever a library's own arrangement is; a :class:`Site` says
how to get from one to the other.

Where pictures are padded to one size, ``valid`` (``B H W``, bool) is True on the picture, which is the upper left of
the image, and False on the padding; None says that every pixel is valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from backsight.validation import AnyNumber, Finite, Positive, Range, Side
from backsight.validation import UserError as UserError

IMAGE = "image"
"""The name of the stage that every chain of inverses ends at: the picture itself."""


Fit = Literal["stretch", "crop", "pad"]
"""How a picture of any size becomes one of the model's, see :class:`Pixels`."""


FURTHEST = 2.0
"""The largest absolute value of an image that may still be meant as one in [0, 1]."""


@dataclass(frozen=True)
class Pixels:
    """What a forward model expects of an image: its size, how to resize, its statistics.

    ``size`` is (H, W) in pixels. ``fit`` is ``"stretch"`` (both sides to ``size``, as DETR is used in
    the paper), ``"crop"`` (the shorter side to ``size / crop_fraction``, then the centre, as timm
    evaluates classifiers) or ``"pad"`` (the whole picture within ``size``, its aspect kept, the rest padded, as
    detectors are evaluated in batches). ``mean`` and ``std`` are per channel, for values in [0, 1].

    Images are RGB throughout. A model that takes 1 of ``channels`` is given their brightness, one that takes 4 an
    opaque alpha beside them, as Pillow converts pictures.
    """

    size: tuple[Side, Side]
    mean: tuple[Finite, Finite, Finite] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    fit: Fit = "stretch"
    crop_fraction: Positive = 1.0
    channels: Literal[1, 3, 4] = 3

    def normalise(self, images: Tensor) -> Tensor:
        """``B 3 H W`` in [0, 1] -> ``B 3 H W`` in the model's own space."""
        return (images - self._channels(self.mean, images)) / self._channels(self.std, images)

    def as_input(self, images: Tensor) -> Tensor:
        """``B 3 H W`` in [0, 1] -> ``B channels H W`` in the model's own space."""
        pixels = self.normalise(images)
        if self.channels == 1:
            red, green, blue = pixels.split(1, 1)
            return 0.299 * red + 0.587 * green + 0.114 * blue
        if self.channels == 4:
            opaque = (1 - sum(self.mean) / 3) / (sum(self.std) / 3)
            return torch.cat([pixels, torch.full_like(pixels[:, :1], opaque)], 1)
        return pixels

    @property
    def conversion(self) -> str:
        """What of RGB the model sees, in words; empty where it sees it as it is."""
        return {1: "the brightness alone", 4: "RGB and an opaque alpha"}.get(self.channels, "")

    def restore(self, pixels: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""
        return pixels * self._channels(self.std, pixels) + self._channels(self.mean, pixels)

    def check(self, images: Tensor, name: str) -> None:
        """Refuse what the model ``name`` cannot take for images: another shape, whole numbers, another range.

        The range is looked at on CPUs alone, since a GPU would have to be waited for. It may be left a little, as edits
        by gradients do.

        Raises:
            UserError: no ``B 3 H W`` of this size, or not in [0, 1].
        """
        shape, (height, width) = tuple(images.shape), self.size
        if len(shape) != 4 or shape[1:] != (3, height, width):
            raise UserError(
                f"images of shape {shape}: {name} takes B 3 {height} {width}; resize them, or load the model with "
                "another size"
            )
        if not images.is_floating_point():
            raise UserError(f"images of {images.dtype}: float RGB in [0, 1] is wanted, as images / 255")
        if type(images) is Tensor and images.device.type == "cpu" and images.numel():
            furthest = images.detach().abs().max().item()
            if furthest > FURTHEST:
                raise UserError(f"images with values as far out as {furthest:.3g}: float RGB in [0, 1] is wanted")

    @staticmethod
    def _channels(values: tuple[float, float, float], like: Tensor) -> Tensor:
        if type(like) is not Tensor:  # a tracer's own kind, which is not to be kept
            return torch.tensor(values, dtype=like.dtype, device=like.device).view(3, 1, 1)
        return _constant(tuple(values), like.dtype, like.device)


def of_rgb(statistics: Sequence[float]) -> tuple[float, float, float]:
    """A statistic of R, G and B, from one for each of a model's 1, 3 or 4 channels."""
    red, green, blue = (*statistics, *statistics, *statistics)[:3]
    return red, green, blue


@lru_cache(maxsize=64)
def _constant(values: tuple[float, float, float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``3 1 1``, copied to the device once: each copy from new memory waits until a GPU has done all its work."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1)


@dataclass(frozen=True)
class Layout:
    """The static shape of the features at a stage: everything an inverse may know of its target.

    ``grids`` lists the (h, w) of every level, coarsest stride last; it is empty where tokens have no
    place in the image (object queries). ``classes`` is C at a prediction stage, whose tokens are
    ``C`` logits followed by a box (cx, cy, w, h in 0..1), and 0 elsewhere. ``scores`` says how those
    logits become a class distribution. ``image`` says that this is the image itself: ``width`` 3, the grid ``H W``.
    """

    tokens: Annotated[int, Range(1, 2**26)]
    width: Annotated[int, Range(1, 2**20)]
    grids: tuple[tuple[Side, Side], ...] = ()
    prefix: AnyNumber = 0
    classes: AnyNumber = 0
    scores: Literal["softmax", "sigmoid"] = "softmax"
    image: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of a layout with one level.

        Raises:
            ValueError: the tokens have no grid, or more than one.
        """
        if len(self.grids) != 1:
            raise ValueError(f"{self} has {len(self.grids)} grids, one was expected")
        return self.grids[0]

    @classmethod
    def of_image(cls, size: tuple[int, int]) -> Layout:
        """The layout of an RGB image of ``size`` (H, W)."""
        return cls(tokens=size[0] * size[1], width=3, grids=((size[0], size[1]),), image=True)

    def under(self, valid: Tensor | None) -> Tensor | None:
        """Which tokens lie under ``valid`` pixels (``B H W``): ``B N`` bool, None where all do or none has a place.

        A token is valid if the pixel at its upper left is, which is how the models themselves take a mask down to
        their grids: with the picture at the upper left, a token that is partly on it counts. Prefix tokens do too.
        """
        if valid is None or not self.grids:
            return None
        levels = [functional.interpolate(valid[:, None].float(), grid).flatten(1) > 0 for grid in self.grids]
        return torch.cat([valid.new_ones(len(valid), self.prefix), *levels], 1)


@dataclass(frozen=True)
class Site:
    """A place in a library's own model where a representation lives.

    ``path`` is the dotted name of a submodule ("" is the model itself), ``side`` its input or its output,
    ``field`` which argument (by position or name) or which output field, None for the only one.
    ``pattern`` is the arrangement of the tensor there, in einops' words: ``b n d`` (tokens),
    ``b h w d`` (a map, channels last), ``b d h w`` (a map, channels first) or ``b d`` (one token, on no grid). A list,
    a tuple or a dictionary of maps at the site is a pyramid; where widths differ, zeros fill up the narrower maps.

    Two more for ``b n d``. ``tokens`` are the parts (start, stop) of the library's row of tokens that are meant, in our
    order; all as they stand where there are none. ``windows`` is for libraries that cut the grid into ``windows`` x
    ``windows`` parts, each in a row of the batch of its own: then ``tokens`` must leave the grid alone.

    ``call`` says which of its calls is meant, from 0, where a pass runs the submodule several times.
    """

    path: str
    side: Literal["input", "output"] = "output"
    field: int | str | None = None
    pattern: Literal["b n d", "b h w d", "b d h w", "b d"] = "b n d"
    tokens: tuple[tuple[int | None, int | None], ...] = ()
    windows: Side = 1
    call: AnyNumber | None = None


@dataclass(frozen=True)
class Stage:
    """One processing stage: where its features are, and what inverts the component that ends there.

    Several ``sites`` of one module are joined along D (a prediction is logits and boxes), those of several modules
    along N (the maps of a pyramid). ``layers`` are the intermediate layers in order, one site or several each: layer
    ``encoder.3`` is ``stage("encoder").layers[3]``. ``inverses`` maps the variant's name ("" is the default) to
    ``(name in INVERSES, options)``.
    """

    name: str
    sites: tuple[Site, ...]
    layers: tuple[Site | tuple[Site, ...], ...] = ()
    inverses: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    prefix: AnyNumber = 0
    levels: Side = 1
    gridded: bool = True
    classes: AnyNumber = 0
    scores: Literal["softmax", "sigmoid"] = "softmax"

    @property
    def cuts(self) -> dict[str, tuple[Site, ...]]:
        """The sites of every layer by its name, then of the stage itself."""
        layers = [layer if isinstance(layer, tuple) else (layer,) for layer in self.layers]
        return {**{f"{self.name}.{index}": sites for index, sites in enumerate(layers)}, self.name: self.sites}


@dataclass(frozen=True)
class Spec:
    """How a model is staged: data, no code. ``stages`` are in the order of the forward pass."""

    family: str
    task: Literal["classify", "detect", "features"]
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """The stage called ``name``.

        Raises:
            UserError: there is none; the message lists those there are.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"no stage '{name}' in {self.family}: it has {', '.join(s.name for s in self.stages)}")

    def before(self, name: str) -> str:
        """The stage that the inverse of stage ``name`` reconstructs: the one before it, or the image."""
        names = [IMAGE, *(stage.name for stage in self.stages)]
        return names[names.index(self.stage(name).name) - 1]


@dataclass(frozen=True)
class Classes:
    """A classifier's answer: ``logits`` ``B C`` and their ``labels`` (names by index, maybe empty)."""

    logits: Tensor
    labels: Mapping[int, str] = field(default_factory=dict)

    def top(self) -> Tensor:
        """The likeliest class of each image, ``B``."""
        return self.logits.argmax(-1)


@dataclass(frozen=True)
class Detections:
    """A detector's answer for one image: ``boxes`` ``Q 4`` (x0, y0, x1, y1 in pixels of the model's
    input), ``scores`` ``Q`` in [0, 1], ``classes`` ``Q`` (int64), ``labels`` (names by index, maybe empty)."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    labels: Mapping[int, str] = field(default_factory=dict)

    def above(self, threshold: float) -> Detections:
        """Only the detections with a score of at least ``threshold``."""
        keep = self.scores >= threshold
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep], self.labels)

    def scaled(self, down: float, across: float) -> Detections:
        """The same with boxes ``down`` times as high and as far down, ``across`` times as wide and as far right."""
        factors = self.boxes.new_tensor([across, down, across, down])
        return Detections(self.boxes * factors, self.scores, self.classes, self.labels)


def valid_sizes(valid: Tensor) -> list[tuple[int, int]]:
    """(rows, columns) of the valid part of each image, its upper left: ``B H W`` bool -> B pairs."""
    rows, columns = valid.any(2).sum(1).tolist(), valid.any(1).sum(1).tolist()
    return list(zip(rows, columns, strict=True))


def split_entry(entry: str) -> tuple[str, str]:
    """An inverse's name in a chain -> (stage, variant): ``backbone@local`` -> ("backbone", "local")."""
    stage, _, variant = entry.partition("@")
    return stage, variant


def entry_of(stage: str, variant: str) -> str:
    """The inverse of :func:`split_entry`: ("backbone", "local") -> ``backbone@local``."""
    return f"{stage}@{variant}" if variant else stage


TITLES = {"local": "each token alone", "onehot": "likeliest class"}
"""What a reader sees for a variant of an inverse whose name says too little."""


def entry_title(entry: str) -> str:
    """The name of an inverse as a reader sees it.

    >>> entry_title("backbone@local"), entry_title("prediction@onehot"), entry_title("encoder@flow")
    ('backbone (each token alone)', 'prediction (likeliest class)', 'encoder (flow)')
    """
    stage, variant = split_entry(entry)
    return f"{stage} ({TITLES.get(variant, variant)})" if variant else stage


class Key(NamedTuple):
    """The name of a trained network, or of a loss: its seed, its stage, and the variant of the inverse, if it is one.

    A forward model that is trained too has ``"forward"`` for its stage; losses that belong to no stage have names of
    their own there (``"image"``, ``"task"``, ``"joint"``). Files and messages have it as text.

    >>> str(Key(0, "backbone", "local"))
    '0/backbone@local'
    >>> Key.parse("0/backbone@local").entry
    'backbone@local'
    """

    seed: int
    stage: str
    variant: str = ""

    @classmethod
    def of(cls, seed: int, entry: str) -> Key:
        """The key of the inverse called ``entry`` in the chain of ``seed``."""
        return cls(seed, *split_entry(entry))

    @classmethod
    def parse(cls, text: str) -> Key:
        """The inverse of ``str(key)``."""
        seed, _, entry = text.partition("/")
        return cls.of(int(seed), entry)

    @property
    def entry(self) -> str:
        """The name of the inverse in its chain: ``backbone``, or ``backbone@local``."""
        return entry_of(self.stage, self.variant)

    def __str__(self) -> str:
        return f"{self.seed}/{self.entry}"

"""What can be changed to see what a model makes of it: the colours of objects (the hue filters of the paper, sec. 4.3),
and tokens replaced by noise (sec. 4.4).

Pure functions on images (RGB in [0, 1]), features and masks; nothing here knows a model.

Hues are degrees round the circle: 0 red, 120 green, 240 blue. A hue says little where there is hardly any colour, so
averages of hues are weighted by chroma: saturation times value, the largest channel minus the smallest. (Saturation
alone would give a nearly black pixel, whose hue is noise, the full weight.) The average is kept as a *colour vector*,
the chroma-weighted mean of unit vectors that point at the hues, a complex number: its angle is the mean hue, its
length the colour that is seen, 0 for grey.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from backsight.core import Layout
from backsight.devices import exact

Filter = Callable[[Tensor], Tensor]
"""Images ``B 3 H W``, RGB in [0, 1] -> images, every pixel changed by itself."""

LUMA = (0.299, 0.587, 0.114)
"""How bright red, green and blue are (ITU-R BT.601, as PIL and OpenCV turn colour to grey)."""

VISIBLE = 0.02
"""A chroma (0..1) below this, five of 255 levels, is not seen as a colour: its hue counts in proportion only."""


def rgb_to_hsv(images: Tensor) -> Tensor:
    """``B 3 H W``, RGB in [0, 1] -> ``B 3 H W``: hue in degrees [0, 360), saturation and value in [0, 1].

    The definition of Python's ``colorsys``; grey has hue 0.
    """
    value, spread = images.amax(-3), chroma(images)
    safe = torch.where(spread > 0, spread, 1)
    red, green, blue = ((value - channel) / safe for channel in images.unbind(-3))
    is_red, is_green, _ = (channel == value for channel in images.unbind(-3))
    sixths = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    hue = torch.where(spread > 0, sixths * 60 % 360, 0)
    saturation = torch.where(value > 0, spread / torch.where(value > 0, value, 1), 0)
    return torch.stack([hue, saturation, value], -3)


def hsv_to_rgb(images: Tensor) -> Tensor:
    """The inverse of :func:`rgb_to_hsv`; hues may be any number of degrees."""
    hue, saturation, value = images.unbind(-3)
    positions = [(turn + hue / 60) % 6 for turn in (5, 3, 1)]
    depths = [torch.minimum(place, 4 - place).clamp(0, 1) for place in positions]
    return torch.stack([value - value * saturation * depth for depth in depths], -3)


def chroma(images: Tensor) -> Tensor:
    """Saturation times value, ``B 3 H W`` -> ``B H W`` in [0, 1]: how much colour a pixel shows."""
    return images.amax(-3) - images.amin(-3)


# ---- filters


def to_grey(images: Tensor) -> Tensor:
    """Every pixel in the grey of its luma (:data:`LUMA`), ``B 3 H W`` -> ``B 3 H W``."""
    weights = images.new_tensor(LUMA).view(3, 1, 1)
    return (images * weights).sum(-3, keepdim=True).expand_as(images).clone()


def _with_hue(hue: float, turn: bool = False) -> Filter:
    """Every hue becomes ``hue``, or is turned by it (degrees); saturation and value stay."""

    def change(images: Tensor) -> Tensor:
        own, saturation, value = rgb_to_hsv(images).unbind(-3)
        changed = (own + hue) % 360 if turn else torch.full_like(own, hue)
        return hsv_to_rgb(torch.stack([changed, saturation, value], -3))

    return change


FILTERS: Mapping[str, Filter] = {
    "none": torch.clone,
    "red": _with_hue(0),
    "green": _with_hue(120),
    "blue": _with_hue(240),
    "rotate120": _with_hue(120, turn=True),
    "rotate240": _with_hue(240, turn=True),
    "grey": to_grey,
}
"""The paper's six filters by name, and ``none``. The grey one keeps luma, the others saturation and value."""

HUES: tuple[str, ...] = ("red", "green", "blue", "none", "rotate120", "rotate240")
"""The filters that keep an object's chroma and give it a hue: twice three hues, a third of the circle apart."""


def recolour(images: Tensor, name: str, masks: Tensor | None = None) -> Tensor:
    """Images through one of :data:`FILTERS`, ``B 3 H W`` RGB in [0, 1] -> ``B 3 H W``. With ``masks`` (``B H W``, bool)
    only the pixels inside are changed, the others stay bit for bit.

    >>> red = torch.tensor([0.75, 0.25, 0.25]).view(1, 3, 1, 1)
    >>> recolour(red, "green").flatten().tolist()
    [0.25, 0.75, 0.25]

    Raises:
        ValueError: there is no such filter.
    """
    if name not in FILTERS:
        raise ValueError(f"no filter '{name}': there are {', '.join(FILTERS)}")
    changed = FILTERS[name](images)
    return changed if masks is None else torch.where(masks.unsqueeze(-3), changed, images)


# ---- what hue there is


def hue_unit(hue: Tensor | float) -> Tensor:
    """Hues in degrees -> the unit vectors that point at them, complex."""
    angle = torch.deg2rad(torch.as_tensor(hue, dtype=torch.float64))
    return torch.polar(torch.ones_like(angle), angle)


def colour_vector(images: Tensor, masks: Tensor | None = None) -> Tensor:
    """The mean colour vector of a region (``masks``, ``... H W`` bool; None for all) of images ``... 3 H W``, RGB in
    [0, 1]: ``...``, complex128; NaN where the mask is empty."""
    precise = exact(images)
    vectors = chroma(precise) * hue_unit(rgb_to_hsv(precise).select(-3, 0))
    return region_mean(vectors, masks)


def region_mean(values: Tensor, masks: Tensor | None = None) -> Tensor:
    """The mean of ``... H W`` over the pixels inside ``masks`` (broadcast; None for all): ``...``, NaN if none is."""
    if masks is None:
        return values.mean((-2, -1))
    inside = masks.to(values.device).to(values.dtype)  # in two steps: where the masks are may be no such type
    return (values * inside).sum((-2, -1)) / inside.sum((-2, -1))


# ---- tokens


Noise = Literal["uniform", "zero", "swap"]
"""``uniform``: every channel drawn uniformly from the range that it has over the image's own grid tokens, so that
nothing but the arrangement gives the noise away. ``zero``: nothing. ``swap``: the same tokens of another image."""

NOISES: tuple[Noise, ...] = get_args(Noise)


def generator_for(seed: int, identity: str) -> torch.Generator:
    """The random numbers of one image: the same for a ``seed`` and the image's id, whatever its batch."""
    digest = hashlib.sha256(f"{seed}:{identity}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def choose_tokens(layout: Layout, share: float, generator: torch.Generator) -> Tensor:
    """A random ``share`` (0..1, rounded to a whole number) of the places of the grid: ``N`` bool, no prefix token.

    From the same state of ``generator`` a smaller share chooses some of those that a larger one does. In a pyramid
    places of the coarsest grid are chosen, and with each the tokens of all levels that lie there.

    Raises:
        ValueError: the tokens have no grid, or the share is not in 0..1.
    """
    if not layout.grids:
        raise ValueError("tokens without a grid have no place in the image: choose among those of another stage")
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share} tokens: give one from 0 to 1")
    h, w = layout.grids[-1]
    order = torch.randperm(h * w, generator=generator)
    places = torch.zeros(h * w, dtype=torch.bool)
    places[order[: round(share * h * w)]] = True
    return tokens_at(layout, places.view(h, w))


def tokens_at(layout: Layout, places: Tensor) -> Tensor:
    """The tokens of ``places``, ``h w`` bool over the coarsest grid of ``layout``: ``N`` bool, no prefix token."""
    levels = [_spread(places, grid).flatten() for grid in layout.grids]
    return torch.cat([torch.zeros(layout.prefix, dtype=torch.bool), *levels])


def _spread(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """``h w`` bool -> ``grid``: every token of the finer grid as the coarse place it lies in."""
    (h, w), (rows, columns) = places.shape, grid
    return places[(torch.arange(rows) * h // rows)[:, None], torch.arange(columns) * w // columns]


def noise_tokens(
    features: Tensor, chosen: Tensor, kind: Noise, generators: Sequence[torch.Generator], prefix: int = 0
) -> Tensor:
    """Features whose ``chosen`` tokens are replaced; all others stay bit for bit.

    Args:
        features: ``B N D``.
        chosen: ``B N`` bool, by :func:`choose_tokens` for every image.
        kind: of :data:`NOISES`.
        generators: of every image (:func:`generator_for`), for the uniform noise.
        prefix: the tokens before the grid, which do not count for the range of the noise.

    Returns:
        ``B N D``.

    Raises:
        ValueError: no such kind, or tokens to be swapped with an image alone in its batch (the next one's are taken).
    """
    if kind not in NOISES:
        raise ValueError(f"no noise '{kind}': there are {', '.join(NOISES)}")
    if kind == "swap" and len(features) < 2:
        raise ValueError("tokens are swapped with those of the batch's next image: give two images at least")
    if kind == "uniform":
        noise = _uniform_like(features, generators, prefix)
    else:
        noise = torch.zeros_like(features) if kind == "zero" else features.roll(-1, 0)
    return torch.where(chosen.to(features.device)[..., None], noise, features)


def _uniform_like(features: Tensor, generators: Sequence[torch.Generator], prefix: int) -> Tensor:
    low, high = features[:, prefix:].aminmax(dim=1, keepdim=True)
    drawn = torch.stack([torch.rand(features.shape[1:], generator=each) for each in generators])
    return low + (high - low) * drawn.to(features)

"""Colours: the hue filters of the paper (sec. 4.3), and what hue a region of an image has.

Hues are degrees round the circle: 0 red, 120 green, 240 blue. A hue says little where there is hardly any colour, so
averages of hues are weighted by chroma: saturation times value, the largest channel minus the smallest. (Saturation
alone would give a nearly black pixel, whose hue is noise, the full weight.) The average is kept as a *colour vector*,
the chroma-weighted mean of unit vectors that point at the hues, a complex number: its angle is the mean hue, its
length the colour that is seen, 0 for grey.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

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
    """Images through one of :data:`FILTERS`, ``B 3 H W`` RGB in [0, 1] -> ``B 3 H W``.

    >>> red = torch.tensor([0.75, 0.25, 0.25]).view(1, 3, 1, 1)
    >>> recolour(red, "green").flatten().tolist()
    [0.25, 0.75, 0.25]

    Args:
        images: ``B 3 H W`` in [0, 1].
        name: of the filter.
        masks: ``B H W``, bool: only the pixels inside are changed, the others stay bit for bit; None for all.

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
    """The mean colour vector of a region, ``... 3 H W`` -> ``...``, complex128; NaN where the mask is empty.

    Args:
        images: ``... 3 H W``, RGB in [0, 1].
        masks: ``... H W``, bool: the region of every image; None for all of it.
    """
    precise = exact(images)
    vectors = chroma(precise) * hue_unit(rgb_to_hsv(precise).select(-3, 0))
    return region_mean(vectors, masks)


def region_mean(values: Tensor, masks: Tensor | None = None) -> Tensor:
    """The mean of ``... H W`` over the pixels inside ``masks`` (broadcast; None for all): ``...``, NaN if none is."""
    if masks is None:
        return values.mean((-2, -1))
    inside = masks.to(values.device).to(values.dtype)  # in two steps: where the masks are may be no such type
    return (values * inside).sum((-2, -1)) / inside.sum((-2, -1))

"""Tokens replaced by noise (paper, sec. 4.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from backsight.core import Layout

Noise = Literal["uniform", "zero", "swap"]
"""``uniform``: every channel drawn uniformly from the range that it has over the image's own grid tokens, so that
nothing but the arrangement gives the noise away. ``zero``: nothing. ``swap``: the same tokens of another image."""

NOISES: tuple[Noise, ...] = get_args(Noise)


def generator_for(seed: int, identity: str) -> torch.Generator:
    """The random numbers of one image: the same for a ``seed`` and the image's id, whatever its batch."""
    digest = hashlib.sha256(f"{seed}:{identity}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def choose_tokens(layout: Layout, share: float, generator: torch.Generator) -> Tensor:
    """A random ``share`` of the places of the grid, ``N`` bool; prefix tokens are never chosen.

    From the same state of ``generator`` a smaller share chooses some of those that a larger one does. In a pyramid
    places of the coarsest grid are chosen, and with each the tokens of all levels that lie there.

    Args:
        layout: of the features.
        share: of the places, 0..1, rounded to a whole number of them.
        generator: of the choice.

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

"""Colour against colorsys, hue round the circle, and tokens: what is changed, and what must not be."""

from __future__ import annotations

import colorsys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from backsight.core import Layout
from backsight.data.world.scenes import hue_distance
from backsight.perturb import (
    FILTERS,
    HUES,
    NOISES,
    choose_tokens,
    chroma,
    colour_vector,
    generator_for,
    hsv_to_rgb,
    hue_unit,
    noise_tokens,
    recolour,
    rgb_to_hsv,
)


def hue_of(image: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The mean hue of a region in degrees."""
    return torch.rad2deg(colour_vector(image, mask).angle()) % 360


LEVELS = torch.linspace(0, 1, 6, dtype=torch.float64)
COLOURS = torch.cartesian_prod(LEVELS, LEVELS, LEVELS).T[None, :, None]  # 1 3 1 216, with greys, ties, black, white


def random_images(batch: int = 2, size: tuple[int, int] = (12, 10), seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


# ---- colour


def test_hsv_is_that_of_colorsys() -> None:
    ours = rgb_to_hsv(COLOURS)[0, :, 0].T
    theirs = torch.tensor([colorsys.rgb_to_hsv(*pixel) for pixel in COLOURS[0, :, 0].T.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ours, theirs * torch.tensor([360.0, 1.0, 1.0]), rtol=0, atol=1e-12)


@given(st.floats(0, 359.9), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_rgb_is_that_of_colorsys(hue: float, saturation: float, value: float) -> None:
    pixel = torch.tensor([hue, saturation, value], dtype=torch.float64).view(3, 1, 1)
    theirs = colorsys.hsv_to_rgb(hue / 360, saturation, value)
    assert hsv_to_rgb(pixel).flatten().tolist() == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(("name", "hue"), [("red", 0), ("green", 120), ("blue", 240)])
def test_a_hue_is_set_and_nothing_else(name: str, hue: float) -> None:
    before, after = rgb_to_hsv(random_images().double()), rgb_to_hsv(recolour(random_images().double(), name))
    assert hue_distance(after[:, 0], torch.tensor(hue)).max() < 1e-9
    torch.testing.assert_close(after[:, 1:], before[:, 1:], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "turn"), [("rotate120", 120), ("rotate240", 240)])
def test_a_hue_is_turned_and_nothing_else(name: str, turn: float) -> None:
    before, after = rgb_to_hsv(random_images().double()), rgb_to_hsv(recolour(random_images().double(), name))
    assert hue_distance(after[:, 0], before[:, 0] + turn).max() < 1e-6
    torch.testing.assert_close(after[:, 1:], before[:, 1:], rtol=0, atol=1e-9)


def test_grey_is_that_of_pillow() -> None:
    levels = (random_images(1)[0] * 255).round().to(torch.uint8)
    grey = recolour(levels[None].float() / 255, "grey")[0]
    assert torch.equal(chroma(grey), torch.zeros_like(grey[0]))
    theirs = Image.fromarray(levels.permute(1, 2, 0).numpy()).convert("L")
    ours = (grey[0] * 255).flatten().tolist()
    assert ours == pytest.approx(list(theirs.tobytes()), abs=0.51)


@pytest.mark.parametrize("name", FILTERS)
def test_only_the_mask_is_recoloured(name: str) -> None:
    images = random_images()
    masks = torch.rand(2, 12, 10, generator=torch.Generator().manual_seed(1)) < 0.5
    changed = recolour(images, name, masks)
    outside = ~masks[:, None].expand_as(images)
    assert torch.equal(changed[outside], images[outside])
    assert torch.equal(changed[~outside], recolour(images, name)[~outside])
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(changed, images) is (name == "none")


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(ValueError, match="no filter 'purple': there are none, red"):
        recolour(random_images(), "purple")


def test_hue_is_averaged_round_the_circle() -> None:
    def of(hue: float, saturation: float = 1.0) -> list[float]:
        return list(colorsys.hsv_to_rgb(hue / 360, saturation, 0.8))

    def image(*pixels: list[float]) -> torch.Tensor:
        return torch.tensor(pixels).T[:, None]

    assert float(hue_distance(hue_of(image(of(350), of(10))), torch.tensor(0.0))) < 1e-3
    assert float(hue_distance(hue_of(image(of(350), of(30))), torch.tensor(10.0))) < 1e-3
    # The pale pixel hardly counts, the grey one not at all.
    assert 100 < float(hue_of(image(of(120), of(0, 0.1), of(240, 0.0)))) < 120
    assert abs(colour_vector(image(of(60), of(60)))) == pytest.approx(0.8, abs=1e-6)
    assert abs(colour_vector(image(of(60), of(240)))) == pytest.approx(0, abs=1e-6)
    mask = torch.tensor([[True, False]])
    assert float(hue_of(image(of(60), of(240)), mask)) == pytest.approx(60, abs=1e-3)
    assert torch.isnan(colour_vector(image(of(60)), torch.tensor([[False]])).real)


def test_hues_round_the_circle() -> None:
    assert complex(hue_unit(90.0)) == pytest.approx(1j)
    triples = torch.stack([colour_vector(recolour(random_images().double(), name)) for name in HUES])
    assert triples[:3].sum(0).abs().max() < 1e-9
    assert triples[3:].sum(0).abs().max() < 1e-9


# ---- tokens

GRID = Layout(tokens=1 + 30, width=4, grids=((5, 6),), prefix=1)
PYRAMID = Layout(tokens=7 * 9 + 4 * 5 + 2 * 3, width=4, grids=((7, 9), (4, 5), (2, 3)))


def test_a_share_of_the_grid_is_chosen_and_never_the_prefix() -> None:
    for share, number in [(0.0, 0), (0.1, 3), (0.5, 15), (1.0, 30)]:
        chosen = choose_tokens(GRID, share, generator_for(0, "a"))
        assert chosen.shape == (31,)
        assert int(chosen.sum()) == number
        assert not chosen[0]


def test_a_smaller_share_is_part_of_a_larger_one_and_images_differ() -> None:
    few, many = (choose_tokens(GRID, share, generator_for(0, "a")) for share in (0.3, 0.5))
    assert bool((many | ~few).all())
    assert torch.equal(few, choose_tokens(GRID, 0.3, generator_for(0, "a")))
    assert not torch.equal(few, choose_tokens(GRID, 0.3, generator_for(0, "b")))
    assert not torch.equal(few, choose_tokens(GRID, 0.3, generator_for(1, "a")))


def test_all_levels_of_a_pyramid_are_chosen_at_the_same_places() -> None:
    chosen = choose_tokens(PYRAMID, 0.5, generator_for(0, "a"))
    fine, middle, coarse = chosen.split([63, 20, 6])
    assert int(coarse.sum()) == 3
    coarse = coarse.view(2, 3)
    for level, (h, w) in ((fine, (7, 9)), (middle, (4, 5))):
        for row, column in torch.cartesian_prod(torch.arange(h), torch.arange(w)).tolist():
            assert level.view(h, w)[row, column] == coarse[row * 2 // h, column * 3 // w]


def test_tokens_without_a_place_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match="no place"):
        choose_tokens(Layout(tokens=7, width=4), 0.5, generator_for(0, "a"))
    with pytest.raises(ValueError, match="from 0 to 1"):
        choose_tokens(GRID, 1.5, generator_for(0, "a"))


@pytest.mark.parametrize("kind", NOISES)
def test_only_chosen_tokens_become_noise(kind) -> None:
    features = torch.randn(3, 31, 4, generator=torch.Generator().manual_seed(0))
    features[:, 0] = 100  # a class token far from all others
    names = ("a", "b", "c")

    def noisy(rows: list[int]) -> torch.Tensor:
        chosen = torch.stack([choose_tokens(GRID, 0.4, generator_for(0, names[row])) for row in rows])
        noises = [generator_for(1, names[row]) for row in rows]
        return noise_tokens(features[rows], chosen, kind, noises, prefix=1)

    chosen = torch.stack([choose_tokens(GRID, 0.4, generator_for(0, name)) for name in names])
    changed = noisy([0, 1, 2])
    assert torch.equal(changed[~chosen], features[~chosen])
    assert (changed[chosen] != features[chosen]).any(-1).all()
    if kind == "zero":
        assert torch.equal(changed[chosen], torch.zeros_like(changed[chosen]))
    elif kind == "swap":
        assert torch.equal(changed[chosen], features.roll(-1, 0)[chosen])
    else:
        low, high = features[:, 1:].aminmax(dim=1, keepdim=True)
        assert bool(((changed >= low) & (changed <= high))[:, 1:].all())
        # The same noise whatever else is in the batch.
        assert torch.equal(noisy([2, 1])[0], changed[2])


def test_noise_that_there_is_not() -> None:
    features, chosen = torch.zeros(1, 31, 4), torch.zeros(1, 31, dtype=torch.bool)
    with pytest.raises(ValueError, match="no noise 'pink'"):
        noise_tokens(features, chosen, "pink", [])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="two images"):
        noise_tokens(features, chosen, "swap", [])

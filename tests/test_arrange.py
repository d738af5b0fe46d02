"""Arrangements: into ``B N D`` and back, grids from numbers of tokens, fields and arguments of a library's calls."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from backsight.arrange import clone, from_features, infer_grids, pick_argument, read_field, to_features, write_field
from backsight.core import Site

MAPS = ("b h w d", "b d h w")
SIZE = (64, 96)
Pair = namedtuple("Pair", ["one", "other"])


@st.composite
def maps(draw: st.DrawFn, pattern: str, levels: int) -> list[Tensor]:
    """A pyramid of maps in the arrangement ``pattern``, of one width."""
    batch, width = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    sizes = [(draw(st.integers(1, 6)), draw(st.integers(1, 6))) for _ in range(levels)]
    shapes = [(batch, h, w, width) if pattern == "b h w d" else (batch, width, h, w) for h, w in sizes]
    return [torch.randn(shape) for shape in shapes]


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from(MAPS), st.integers(1, 4), st.sampled_from([list, tuple]))
def test_a_pyramid_comes_back_as_it_was(data: st.DataObject, pattern: str, levels: int, container: type) -> None:
    pyramid = container(data.draw(maps(pattern, levels)))
    sites = [Site("", pattern=pattern)]
    features = to_features([pyramid], sites, SIZE)
    assert features.shape[1] == sum(level.numel() for level in pyramid) // features.shape[0] // features.shape[2]
    (back,) = from_features(features, [pyramid], sites, SIZE)
    assert type(back) is container
    assert all(map(torch.equal, back, pyramid))


@pytest.mark.parametrize("pattern", MAPS)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2), (1, 0, 2, 3)])
def test_a_map_comes_back_in_its_own_order_of_memory(pattern: str, order: tuple[int, ...]) -> None:
    value = torch.randn(2, 3, 4, 5).permute(order)
    sites = [Site("", pattern=pattern)]
    features = to_features([value], sites, SIZE)
    for each in (features, features.contiguous()):
        (back,) = from_features(each, [value], sites, SIZE)
        assert torch.equal(back, value)
        assert back.stride() == value.stride()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 7))
def test_several_sites_are_joined_along_the_width(widths: list[int], tokens: int) -> None:
    values = [torch.randn(2, tokens, width) for width in widths]
    sites = [Site("")] * len(widths)
    features = to_features(values, sites, SIZE)
    torch.testing.assert_close(features, torch.cat(values, -1), rtol=0, atol=0)
    assert all(map(torch.equal, from_features(features, values, sites, SIZE), values))


@pytest.mark.parametrize("pattern", MAPS)
def test_the_grid_goes_row_by_row(pattern: str) -> None:
    value = torch.randn(2, 3, 4, 5) if pattern == "b h w d" else torch.randn(2, 5, 3, 4)
    features = to_features([value], [Site("", pattern=pattern)], SIZE)
    at = value[:, 2, 1] if pattern == "b h w d" else value[:, :, 2, 1]
    assert torch.equal(features[:, 2 * 4 + 1], at)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2))
def test_windows_are_joined_row_by_row_and_cut_again(count: int, h: int, w: int, extra: int) -> None:
    whole = torch.randn(2, h * count, w * count, 3)
    cut = [
        whole[image, row * h : (row + 1) * h, column * w : (column + 1) * w].flatten(0, 1)
        for image in range(2)
        for row in range(count)
        for column in range(count)
    ]
    native = torch.cat([torch.randn(len(cut), extra, 3), torch.stack(cut)], 1)
    site = Site("", tokens=((extra, None),), windows=count)
    size = (16 * h * count, 16 * w * count)
    features = to_features([native], [site], size)
    assert torch.equal(features, whole.flatten(1, 2))
    (back,) = from_features(2 * features, [native], [site], size)
    assert torch.equal(back[:, :extra], native[:, :extra]), "tokens that the site leaves out stay"
    assert torch.equal(back[:, extra:], 2 * native[:, extra:])


def test_parts_of_a_row_come_in_the_order_of_the_site_and_go_back() -> None:
    row = torch.arange(10.0).view(1, 10, 1)
    all_of_it, last = Site("", tokens=((-3, None), (None, -3))), Site("", tokens=((-3, None),))
    features = to_features([row], [all_of_it], SIZE)
    assert features.flatten().tolist() == [7, 8, 9, 0, 1, 2, 3, 4, 5, 6]
    assert torch.equal(from_features(features, [row], [all_of_it], SIZE)[0], row)
    assert to_features([row], [last], SIZE).flatten().tolist() == [7, 8, 9]
    (back,) = from_features(torch.zeros(1, 3, 1), [row], [last], SIZE)
    assert back.flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 0, 0]
    assert row.flatten().tolist() == list(range(10)), "what the library made stays as it was"


@pytest.mark.parametrize(
    ("tokens", "size", "levels", "expected"),
    [
        (300, (480, 640), 1, ((15, 20),)),
        (192, (384, 512), 1, ((12, 16),)),
        (196, (224, 224), 1, ((14, 14),)),
        (256, (224, 224), 1, ((16, 16),)),  # patches of 14
        (1369, (518, 518), 1, ((37, 37),)),
        (49, (224, 224), 1, ((7, 7),)),
        (425, (800, 522), 1, ((25, 17),)),  # rounded up: 522 / 32 = 16.3
        (6380, (480, 640), 4, ((60, 80), (30, 40), (15, 20), (8, 10))),  # Deformable DETR
        (8400, (640, 640), 3, ((80, 80), (40, 40), (20, 20))),  # RT-DETR
        (299, (480, 640), 1, ()),
    ],
)
def test_grids_from_the_number_of_tokens(
    tokens: int, size: tuple[int, int], levels: int, expected: tuple[tuple[int, int], ...]
) -> None:
    assert infer_grids(torch.zeros(1, tokens, 8), "b n d", tokens, size, levels) == expected


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 25), st.integers(1, 25), st.sampled_from([4, 8, 14, 16, 32]))
def test_the_grid_of_an_image_that_patches_tile_is_found(h: int, w: int, stride: int) -> None:
    assert infer_grids(None, "b n d", h * w, (h * stride, w * stride), 1) == ((h, w),)


@settings(deadline=None, max_examples=100)
@given(st.integers(64, 800), st.integers(64, 800), st.sampled_from([8, 16, 32]))
def test_the_grid_of_a_convolution_that_pads_is_found(height: int, width: int, stride: int) -> None:
    h, w = -(-height // stride), -(-width // stride)
    assert infer_grids(None, "b n d", h * w, (height, width), 1) == ((h, w),)


@pytest.mark.parametrize("pattern", MAPS)
def test_grids_of_maps_are_read_off(pattern: str) -> None:
    sizes = ((3, 4), (2, 2))
    shapes = [(1, h, w, 5) if pattern == "b h w d" else (1, 5, h, w) for h, w in sizes]
    assert infer_grids([torch.zeros(shape) for shape in shapes], pattern, 16, (99, 99), 2) == sizes


def test_a_clone_has_the_same_types_and_no_common_memory() -> None:
    tensor = torch.ones(2)
    value = {
        "output": ModelOutput(logits=tensor),
        "pair": Pair(tensor, [tensor]),
        "ordered": OrderedDict(a=(tensor, None)),
        "other": "word",
    }
    copied = clone(value)
    tensor.zero_()
    assert copied["output"].logits.tolist() == copied["output"]["logits"].tolist() == [1, 1]
    assert isinstance(copied["output"], ModelOutput)
    assert isinstance(copied["pair"], Pair)
    assert copied["pair"].other[0].tolist() == [1, 1]
    assert isinstance(copied["ordered"], OrderedDict)
    assert copied["ordered"]["a"][0].tolist() == [1, 1]
    assert copied["ordered"]["a"][1] is None
    assert copied["other"] == "word"


@pytest.mark.parametrize(
    ("output", "name"), [((1, 2), 1), ([1, 2], 0), ({"a": 1, "b": 2}, "b"), (ModelOutput(a=1, b=2), "a"), (1, None)]
)
def test_a_written_field_leaves_the_original(output: Any, name: int | str | None) -> None:
    before = repr(output)
    written = write_field(output, name, 99)
    assert read_field(written, name) == 99
    assert type(written) is type(output)
    assert repr(output) == before


class TwoArguments(nn.Module):
    def forward(self, first: int, second: int = 2, **others: int) -> int:
        return first + second


@pytest.mark.parametrize(
    ("args", "kwargs", "name", "found"),
    [
        ((10, 20), {}, None, 10),
        ((10, 20), {}, 1, 20),
        ((10, 20), {}, "second", 20),
        ((10,), {"second": 20}, "second", 20),
        ((10,), {"second": 20}, 1, 20),
        ((), {"first": 10}, None, 10),
        ((), {"first": 10, "third": 30}, "third", 30),
    ],
)
def test_an_argument_is_found_by_position_and_by_keyword(args: tuple, kwargs: dict, name: Any, found: int) -> None:
    value, write = pick_argument(TwoArguments(), args, kwargs, name)
    assert value == found
    new_args, new_kwargs = write(99)
    assert [*new_args, *new_kwargs.values()] == [99 if each == found else each for each in [*args, *kwargs.values()]]
    assert list(new_kwargs) == list(kwargs)

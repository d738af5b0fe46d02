"""The drawn world: every truth it claims is measured again from its pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from backsight.core import UserError
from backsight.data.base import ImageData, collate
from backsight.data.world import MIN_VISIBLE, World, open_world
from backsight.data.world.render import hsv_to_rgb, render
from backsight.data.world.scenes import (
    LAWS,
    class_hues,
    class_names,
    hue_distance,
    recolour,
    sample_scenes,
    uniforms,
    with_backdrop_of,
    without_clutter,
)
from backsight.data.world.shapes import EXTENT, NAMES, SHAPES, areas, atlas, reach, signed_distance


def hues_of(pixels: torch.Tensor) -> torch.Tensor:
    """A second way to hue, from the largest channel and the other two: ``n 3`` -> ``n`` degrees."""
    rgb = np.asarray(pixels, dtype=np.float64)
    high, low = rgb.max(1), rgb.min(1)
    sector = np.argmax(rgb, axis=1)
    rows = np.arange(len(rgb))
    after, before = rgb[rows, (sector + 1) % 3], rgb[rows, (sector + 2) % 3]
    return torch.from_numpy((60 * (2 * sector + (after - before) / np.maximum(high - low, 1e-9))) % 360)


def test_the_distance_to_a_square_is_exact():
    square = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    points = np.array([[0.0, 0], [0.5, 0], [2, 0], [2, 2], [-1, 0.3]])
    np.testing.assert_allclose(signed_distance(points, [square]), [-1, -0.5, 1, np.sqrt(2), 0], atol=1e-12)


def test_two_outlines_make_a_ring():
    ring = SHAPES["ring"]
    middle, body, outside = signed_distance(np.array([[0.0, 0], [0.7, 0], [1.2, 0]]), ring)
    assert middle > 0.4
    assert body < -0.2
    assert outside > 0.2


def test_no_shape_or_its_shadow_leaves_its_table():
    border = torch.cat([atlas()[:, 0, 0], atlas()[:, 0, -1], atlas()[:, 0, :, 0], atlas()[:, 0, :, -1]], dim=1)
    assert (border > 0.16).all()
    assert (reach(0.0) < EXTENT * 2**0.5).all()


def test_areas_are_those_of_the_polygons():
    def area(outline: np.ndarray) -> float:
        following = np.roll(outline, -1, axis=0)
        return abs(np.sum(outline[:, 0] * following[:, 1] - following[:, 0] * outline[:, 1])) / 2

    for index, name in enumerate(NAMES[: len(SHAPES)]):
        outlines = SHAPES[name]
        exact = area(outlines[0]) - sum(area(hole) for hole in outlines[1:])
        assert float(areas()[index]) == pytest.approx(exact, rel=0.02), name


def test_uniform_numbers_are_uniform_and_unrelated():
    numbers = uniforms(3, range(20_000), 4)
    assert ((numbers >= 0) & (numbers < 1)).all()
    counts = np.apply_along_axis(lambda column: np.histogram(column, 20, (0, 1))[0], 0, numbers)
    assert (((counts - 1000) ** 2 / 1000).sum(0) < 50).all()  # chi-square with 19 degrees of freedom: 45 at p = .0007
    related = np.corrcoef(np.hstack([numbers, np.roll(numbers, 1, axis=0), uniforms(4, range(20_000), 4)]).T)
    assert np.abs(related - np.eye(12)).max() < 0.03


def assert_same_pixels(one: torch.Tensor, other: torch.Tensor, level: float = 1.0) -> None:
    """Colours agree up to a grey level: in a batch of another size their last bits differ, and are then rounded."""
    assert (one.float() - other.float()).abs().max() < 1.5 * level


def assert_same_masks(one: torch.Tensor, other: torch.Tensor) -> None:
    """At most a pixel in a thousand, on an edge, falls to the other side."""
    assert one.shape == other.shape
    assert (one != other).sum() <= one.numel() / 1000


@settings(max_examples=15, deadline=None)
@given(
    law=st.sampled_from(LAWS),
    seed=st.integers(0, 2**31),
    index=st.integers(0, 2**40),
    others=st.lists(st.integers(0, 999), max_size=20),
    size=st.tuples(st.integers(24, 80), st.integers(24, 80)),
)
def test_a_scene_is_the_same_in_every_batch(law, seed, index, others, size):
    alone = render(sample_scenes(law, seed, [index]), size)
    among = render(sample_scenes(law, seed, [*others, index, *others]), size)
    assert_same_pixels(alone.images[0], among.images[len(others)])
    assert_same_masks(alone.masks[0], among.masks[len(others)])
    assert alone.images.shape == (1, 3, *size)


def test_a_batch_is_its_collated_samples():
    world = World("prior", (48, 64), seed=5, length=40)
    batch, samples = world.batch(range(40)), collate([world[index] for index in range(40)])
    assert_same_pixels(batch.images, samples.images, level=1 / 255)
    assert batch.ids == samples.ids
    for one, other in zip(batch.targets, samples.targets, strict=True):
        assert_same_masks(one.masks, other.masks)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=1)
        for name in one.attributes:  # `visible` counts the mask's pixels
            torch.testing.assert_close(one.attributes[name], other.attributes[name], rtol=0, atol=0.05)


def test_nothing_to_draw_draws_nothing():
    assert render(sample_scenes("prior", 0, []), (32, 40)).images.shape == (0, 3, 32, 40)
    assert World().batch([]).images.shape == (0, 3, 96, 96)


@pytest.mark.parametrize("law", LAWS)
def test_labels_say_what_is_seen(law):
    world = World(law, (96, 128), length=300)
    for target in world.batch(range(300)).targets:
        assert (target.attributes["visible"] >= MIN_VISIBLE).all()
        assert target.masks.sum(0).max() <= 1 or not len(target.masks)
        for box, mask in zip(target.boxes, target.masks, strict=True):
            rows, columns = np.nonzero(mask.numpy())
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("law", LAWS)
def test_the_hue_in_the_picture_is_the_hue_in_the_attributes(law):
    world = World(law, length=200, single=True)
    for sample in world.samples(range(200)):
        pixels = sample.image[:, sample.target.masks[0]].T
        bright = pixels[pixels.amax(1) > 120]
        gap = hue_distance(hues_of(bright), sample.target.attributes["hue"][0].double())
        assert gap.median() < 3


def test_the_laws_are_kept():
    scenes = {law: sample_scenes(law, 1, range(20_000)) for law in LAWS}
    near = {
        law: hue_distance(found.objects.hue, class_hues(law)[found.classes]) <= 10 + 1e-3
        for law, found in scenes.items()
    }
    for law, found in scenes.items():
        assert (near[law] != found.prototypical).sum() < 10, law  # only where rounding decides
        assert torch.bincount(found.classes.flatten(), minlength=8).float().std() < 200
    assert near["prior"].float().mean() == pytest.approx(0.85, abs=0.005)
    assert near["independent"].float().mean() == pytest.approx(20 / 360, abs=0.005)
    assert near["defining"].all()


def test_independent_hues_say_nothing_of_the_class():
    scenes = sample_scenes("independent", 1, range(20_000))
    bins = (scenes.objects.hue / 45).long().clamp(max=7)
    table = torch.bincount((8 * scenes.classes + bins).flatten(), minlength=64).double()
    assert ((table - table.mean()) ** 2 / table.mean()).sum() < 110  # 63 degrees of freedom: 107 at p = .0005


def test_pairs_of_defining_share_a_shape_and_wear_opposite_hues():
    scenes = sample_scenes("defining", 0, range(500))
    assert torch.equal(scenes.objects.shape, scenes.classes // 2)
    hues = class_hues("defining")
    assert torch.equal(hue_distance(hues[0::2], hues[1::2]), torch.full((4,), 180.0))
    assert class_names("defining")[2] == "orange star"
    assert class_names("defining")[3] == "blue star"


def test_the_law_changes_nothing_but_hues():
    one, other = (sample_scenes(law, 0, range(50)) for law in ("prior", "independent"))
    assert torch.equal(one.objects.centre, other.objects.centre)
    assert torch.equal(one.classes, other.classes)
    assert not torch.equal(one.objects.hue, other.objects.hue)


def test_recolouring_changes_one_object_alone():
    scenes = sample_scenes("prior", 7, range(60))
    before, after = render(scenes), render(recolour(scenes, 1, 200.0))
    assert torch.equal(before.masks, after.masks)
    changed = (before.images != after.images).any(1)
    # The soft edge of the object blends over a pixel or so round what counts as its mask.
    near = torch.nn.functional.max_pool2d(before.masks[:, 1:2].float(), 5, stride=1, padding=2)[:, 0] > 0
    assert changed.any()
    assert not (changed & ~near & scenes.objects.present[:, 1, None, None]).any()
    assert not changed[~scenes.objects.present[:, 1]].any()


def test_each_scene_may_take_its_own_hue_and_object():
    scenes = sample_scenes("independent", 7, range(3))
    other = recolour(scenes, torch.tensor([0, 2, 3]), torch.tensor([10.0, 370.0, -10.0]))
    assert torch.equal(other.objects.hue[[0, 1, 2], [0, 2, 3]], torch.tensor([10.0, 10.0, 350.0]))
    assert (other.objects.hue != scenes.objects.hue).sum() == 3


def test_background_and_clutter_change_without_the_objects():
    scenes, other = sample_scenes("prior", 0, range(40)), sample_scenes("prior", 9, range(40))
    plain = render(without_clutter(scenes))
    backdrop = render(without_clutter(with_backdrop_of(scenes, other)))
    assert torch.equal(plain.masks, backdrop.masks)
    eroded = torch.nn.functional.max_pool2d((~plain.masks).float(), 5, stride=1, padding=2) == 0
    inside = eroded.any(1)
    inside[:, [0, 1, -2, -1]] = inside[:, :, [0, 1, -2, -1]] = False  # an edge may run along the picture's own
    same = (plain.images == backdrop.images).all(1)
    assert same[inside].all()
    assert same.float().mean() < 0.5
    cluttered = render(replace(scenes, behind=other.behind, front=other.front))
    assert not torch.equal(cluttered.images, plain.images)


def test_colours_are_hsv():
    hue, saturation, value = torch.rand(3, 200).unbind(0)
    expected = [
        Image.new("HSV", (1, 1), tuple(int(255 * c) for c in colour)).convert("RGB").getpixel((0, 0))
        for colour in zip(hue.tolist(), saturation.tolist(), value.tolist(), strict=True)
    ]
    rounded = [(255 * c).int() / 255 for c in (hue, saturation, value)]
    found = hsv_to_rgb(360 * rounded[0], rounded[1], rounded[2]) * 255
    assert (found - torch.tensor(expected)).abs().max() < 3


def test_a_larger_picture_is_the_same_scene():
    scenes = sample_scenes("prior", 0, range(30))
    small, large = render(scenes, (96, 96)), render(scenes, (288, 288))
    shrunk = torch.nn.functional.avg_pool2d(large.images.float(), 3)
    assert (shrunk - small.images.float()).abs().mean() < 4
    assert (small.visible - large.visible).abs().max() < 0.05


def test_single_scenes_have_one_object_and_its_label():
    world = World("independent", length=200, single=True)
    for target in world.batch(range(200)).targets:
        assert len(target.labels) == 1
        assert target.label == int(target.labels[0])


def test_splits_share_nothing_and_their_fingerprints_differ():
    splits = open_world("world:independent:single:2", (64, 64), lengths=(50, 20, 20))
    worlds = (splits.train, splits.validation, splits.test)
    assert all(isinstance(world, ImageData) for world in worlds)
    assert [world.seed for world in worlds] == [6, 7, 8]
    assert len({world.fingerprint() for world in worlds}) == 3
    assert {world.name for world in worlds} == {"world:independent:single"}
    pictures = torch.cat([world.batch(range(20)).images for world in worlds])
    assert len(torch.unique(pictures.flatten(1), dim=0)) == 60
    assert worlds[0][3].id == "independent-single-6-3"


def test_a_world_ends():
    world = World(length=3)
    assert len(list(world)) == 3
    assert world[-1].id == world[2].id
    with pytest.raises(IndexError):
        world[3]


def test_the_fingerprint_knows_everything():
    worlds = [World(), World("defining"), World(size=(96, 64)), World(seed=1), World(length=5), World(single=True)]
    assert len({world.fingerprint() for world in worlds}) == len(worlds)
    assert World().fingerprint() == World().fingerprint()


@pytest.mark.parametrize(
    "text",
    ["world:blue", "world:prior:-1", "world::single", "world:prior:single:7:8", "world:prior:defining", "world:7:7"],
)
def test_a_wrong_world_is_one_line(text):
    with pytest.raises(UserError, match="say world"):
        open_world(text)


def test_a_wrong_law_is_one_line():
    with pytest.raises(UserError, match="there are prior, independent, defining"):
        World("postmodern")

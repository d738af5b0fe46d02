"""Colours that were changed, colours that appear: known answers, and the contract of both experiments."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import backsight as bs
from backsight.core import UserError
from backsight.data import Target
from backsight.data.world.scenes import class_hues
from backsight.engine import StagedModel
from backsight.experiments import Result, Subject
from backsight.experiments.color_perturbation import SIX, hue_retention, pairwise_error
from backsight.experiments.color_perturbation import measure as perturb_colours
from backsight.experiments.objects import category_mask, category_masks, fill_boxes, find_class, object_masks
from backsight.experiments.prototypes import OTHERS, OWN, colour_of, hues_of_classes
from backsight.experiments.prototypes import measure as find_prototypes
from backsight.perturb import HUES, hsv_to_rgb, hue_unit, recolour, rgb_to_hsv, to_grey
from known_chains import check_contract, random_subject
from pixel_toy import paint_patches, pixel_model
from stand_in_chains import paint_grey, painted

MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[2:6, 2:6] = True


def plain(hue: float, saturation: float = 0.8, value: float = 0.8) -> torch.Tensor:
    """``3 8 8`` of one colour."""
    pixel = torch.tensor([hue, saturation, value], dtype=torch.float64)
    return hsv_to_rgb(pixel.view(3, 1, 1).expand(3, 8, 8))


def through_hues(image: torch.Tensor) -> torch.Tensor:
    return torch.stack([recolour(image, name, MASK) for name in HUES])


def test_a_category_that_no_image_has_is_said_to_be_missing() -> None:
    model = bs.load_model("zoo/vit-prior")
    subject = Subject(model, "zoo/vit-prior", "world:prior:single", num_images=1)
    label = subject.batches[0].targets[0].labels[0].item()
    category = next(name for number, name in subject.data.classes.items() if number != label)
    result = perturb_colours(subject, category=category, num_pictures=0)
    (note,) = result.notes
    assert category in note


# ---- objects


def test_objects_are_no_crowds() -> None:
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, :2], masks[1, 2:4, :4], masks[2, 4:] = True, True, True
    boxes = torch.tensor([[0.0, 0, 8, 2], [0, 2, 4, 4], [0, 4, 8, 8]])
    target = Target(boxes, torch.tensor([5, 6, 7]), masks, torch.tensor([False, False, True]))
    assert torch.equal(object_masks(target, (8, 8)), masks[:2])
    largest = category_mask(target, (8, 8))
    assert torch.equal(largest, masks[0])
    small = category_mask(target, (8, 8), 6)
    assert torch.equal(small, masks[1])
    assert category_mask(target, (8, 8), 7) is None
    assert category_mask(Target(), (8, 8)) is None
    assert torch.equal(fill_boxes(boxes, (8, 8)), masks)


def test_classes_by_name() -> None:
    assert find_class({3: "bus", 4: "bear"}, "bear") == 4
    with pytest.raises(UserError, match=r"no class 'bar'.*bear"):
        find_class({3: "bus", 4: "bear"}, "bar")


# ---- colour perturbation


def test_pairwise_error_is_the_mean_over_pairs() -> None:
    images = torch.rand(2, 6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    pairs = [(a, b) for a in range(6) for b in range(a)]
    slow = torch.stack([(images[:, a] - images[:, b]).square().mean(1) for a, b in pairs]).mean(0)
    torch.testing.assert_close(pairwise_error(images), slow.double())


def test_all_of_the_hue_is_kept_by_a_perfect_inverse_and_by_a_pale_one() -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    given = through_hues(image)
    assert float(hue_retention(given, given, MASK)) == pytest.approx(1)
    pale = 0.3 * given + 0.7 * to_grey(given)
    assert float(hue_retention(given, pale, MASK)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("hue", [0.0, 77.0, 200.0])
def test_nothing_is_kept_by_whoever_paints_without_looking(hue: float) -> None:
    given = through_hues(torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert float(hue_retention(given, plain(hue).expand_as(given), MASK)) == pytest.approx(0, abs=1e-6)
    assert float(hue_retention(given, to_grey(given), MASK)) == pytest.approx(0, abs=1e-6)


def test_hue_retention_in_between() -> None:
    given = through_hues(plain(40.0))
    turn = torch.tensor([180.0, 0, 0]).view(3, 1, 1)
    assert float(hue_retention(given, hsv_to_rgb(rgb_to_hsv(given) + turn), MASK)) == pytest.approx(-1)
    halfway = 0.5 * given + 0.5 * plain(40.0)  # half a prototype
    assert 0.3 < float(hue_retention(given, halfway, MASK)) < 0.8
    assert math.isnan(float(hue_retention(through_hues(plain(0, saturation=0.0)), given, MASK)))
    seeds = torch.stack([given, plain(9.0).expand_as(given)])
    assert hue_retention(given, seeds, MASK).tolist() == pytest.approx([1, 0])


@pytest.mark.parametrize(("perfect", "kept"), [(True, 1.0), (False, 0.0)])
def test_colour_perturbation_known_answers(perfect: bool, kept: float) -> None:
    subject = painted(pixel_model(), paint_patches if perfect else paint_grey, "world:prior", 8)
    result = perturb_colours(subject)
    for stage in subject.stages:
        for region in ("image", "object"):
            given = result.one(stage="input", metric="pairwise mse", region=region)
            found = result.one(stage=stage, metric="pairwise mse", region=region)
            assert found.values.shape == (2, 8)
            torch.testing.assert_close(found.known(), kept * given.known().expand(2, -1), rtol=1e-4, atol=1e-12)
        retained = result.one(stage=stage, metric="hue retention").known()
        assert retained.numel() >= 10
        assert retained.flatten().tolist() == pytest.approx([kept] * retained.numel(), abs=1e-4)
    assert "no answers" in result.notes[0]
    empty = torch.tensor([len(target.boxes) == 0 for batch in subject.batches for target in batch.targets])
    assert torch.equal(result.one(stage="input", metric="pairwise mse", region="image").values[0].isnan(), empty)


def test_hues_change_the_objects_of_a_category_and_grey_the_whole_image() -> None:
    subject = painted(pixel_model(), paint_patches, "world:prior", 4)
    result = perturb_colours(subject, num_pictures=1)
    original, red, grey = (result.shown(stage="input", filter=name)[0].image for name in ("none", "red", "grey"))
    assert torch.allclose(grey, to_grey(original), atol=1e-6)
    mask = category_masks(subject.batches[0].targets[0], (96, 96))[0]
    assert torch.equal(red[:, ~mask], original[:, ~mask])
    assert not torch.equal(red[:, mask], original[:, mask])


def test_what_is_measured_is_averaged_over_the_categories_in_an_image() -> None:
    subject = painted(pixel_model(), paint_patches, "world:prior", 6)
    labels = {"stage": "input", "metric": "pairwise mse", "region": "object"}
    every = perturb_colours(subject, num_pictures=0).one(**labels).values
    names = sorted({subject.data.classes[int(label)] for b in subject.batches for t in b.targets for label in t.labels})
    alone = [perturb_colours(subject, category=name, num_pictures=0).one(**labels).values for name in names]
    assert sum(each.isfinite() for each in alone).max() > 1  # categories in one image
    assert torch.allclose(torch.stack(alone).nanmean(0), every, equal_nan=True)


# ---- prototypes


def test_the_colour_of_a_region() -> None:
    hues = [hue_unit(120.0), hue_unit(300.0)]
    same = colour_of(plain(120.0)[None], MASK, hues[0], hues[1:])
    assert float(same["alignment", OWN]) == pytest.approx(1)
    assert float(same["alignment", OTHERS]) == pytest.approx(-1)
    assert float(same["saturation", ""]) == pytest.approx(0.8)
    grey = colour_of(to_grey(plain(120.0))[None], MASK, hues[0])
    assert float(grey["alignment", OWN]) == pytest.approx(0, abs=1e-6)
    assert float(grey["saturation", ""]) == pytest.approx(0, abs=1e-6)
    assert grey["alignment", OTHERS].isnan().all()
    # Of two opposite colours the more saturated one decides.
    two = torch.where(torch.arange(8) < 4, plain(120.0, saturation=0.9), plain(300.0, saturation=0.3))
    assert float(colour_of(two, MASK, hues[0])["alignment", OWN]) == pytest.approx(0.5, abs=1e-6)


def paint_hue(hue: float | None, model: StagedModel) -> Callable[[Any], torch.Tensor]:
    """Paints every pixel in ``hue``, or in its own grey for None."""
    patches = paint_patches(model)

    def paint(source: Any) -> torch.Tensor:
        grey = patches(source)
        return grey if hue is None else torch.zeros_like(grey) + plain(hue)[:, :1, :1].float()

    return paint


def test_prototypes_known_answers() -> None:
    for hue in (None, 45.0):
        subject = painted(pixel_model(), partial(paint_hue, hue), "world:prior:single", 24)
        result = find_prototypes(subject, num_classes=8)
        for stage in subject.stages:
            saturation = result.one(stage=stage, metric="saturation", **{"class": "all"})
            assert saturation.known().numel() == 48
            assert saturation.mean() == pytest.approx(0 if hue is None else 0.8, abs=1e-5)
        stars = result.one(stage="encoder", metric="alignment", against=OWN, **{"class": "star"})
        rings = result.one(stage="encoder", metric="alignment", against=OWN, **{"class": "ring"})
        assert (stars.mean(), rings.mean()) == pytest.approx((0, 0) if hue is None else (1, math.sqrt(0.5)), abs=1e-5)
        others = result.one(stage="encoder", metric="alignment", against=OTHERS, **{"class": "star"})
        assert others.mean() == pytest.approx(0 if hue is None else -1 / 7, abs=1e-5)
    original = result.one(stage="original", metric="alignment", against=OWN, **{"class": "all"})
    assert original.values.shape == (1, 24)
    assert original.mean() > 0.5  # most objects wear the hue of their class


def test_class_hues_come_from_the_law_or_from_the_images() -> None:
    subject = painted(pixel_model(), paint_grey, "world:defining:single", 40)
    law, data = hues_of_classes(subject), subject.data
    assert len(law) == 8

    class Unlawful:
        name, classes = "pictures", data.classes

        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> Any:
            return data[index]

        def fingerprint(self) -> str:
            return ""

    seen = hues_of_classes(painted(subject.model, paint_grey, Unlawful(), 40))
    assert len(seen) >= 6
    for label, unit in seen.items():
        assert abs(unit) == pytest.approx(1)
        assert (unit * law[label].conj()).real > math.cos(math.radians(15)), (label, class_hues("defining")[label])


# ---- contracts


def test_contract(tmp_path: Path) -> None:
    subjects = [random_subject("detr", num_images=2), random_subject("vit", num_images=2)]
    for name in ("color_perturbation", "prototypes"):
        loaded = check_contract(name, subjects, tmp_path / name, num_pictures=1)
        for subject in subjects:
            for stage in subject.stages:
                found = loaded.select(model=subject.name, stage=stage)
                assert found
                assert all(each.values.shape == (2, 2) for each in found)
    loaded = Result.load(tmp_path / "color_perturbation")
    assert len(loaded.select(model="small vit", metric="accuracy")) == 7
    assert {each.values.shape for each in loaded.select(metric="AP")} == {(1, 1)}
    assert {each.values.shape for each in loaded.select(metric="found")} == {(1, 2)}
    assert all(each.stated is not None for each in loaded.select(metric="AP"))
    assert {each.values.shape for each in loaded.select(metric="AP by group")} == {(1, 2)}  # of two images
    assert {each.labels["filter"] for each in loaded.pictures} == {"none", *SIX}

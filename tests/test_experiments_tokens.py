"""Noise in tokens: what a local inverse keeps in its patches, what a global one spreads; routes, pictures, contract."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backsight.core import Layout, UserError
from backsight.experiments import EXPERIMENTS, Result, Subject
from backsight.experiments.token_noise import Route, area_under_curve, measure, patch_pixels, routes
from backsight.perturb import choose_tokens, generator_for
from known_chains import check_contract, check_figure, random_subject
from numerics import assert_same_values
from pixel_toy import paint_mean, paint_patches, pixel_model
from stand_in_chains import paint_grey, painted


@pytest.fixture(scope="module")
def detector() -> Subject:
    return random_subject("detr", inverses=["backbone@local=local"], num_images=3)


@pytest.fixture(scope="module")
def classifier() -> Subject:
    return random_subject("vit", num_images=3)


# ---- known answers


def test_a_local_inverse_keeps_noise_in_its_patches() -> None:
    result = measure(painted(pixel_model(), paint_patches, "world:prior", 4))
    assert len(result.select(metric="containment")) == 3 * 3
    for each in result.select(metric="containment"):
        assert torch.equal(each.values, torch.ones(2, 4, dtype=torch.float64))
    for each in result.select(metric="error", region="untouched"):
        assert each.values.abs().max() == 0
    for each in result.select(metric="error", region="noised"):
        assert each.values.min() > 1e-3


def test_what_is_spread_evenly_is_not_contained() -> None:
    result = measure(painted(pixel_model(), paint_mean, "world:prior", 4))
    for each in result.select(metric="containment"):
        assert each.values.flatten().tolist() == pytest.approx([0] * 8, abs=1e-4)


def test_an_inverse_that_does_not_look_has_no_answer() -> None:
    result = measure(painted(pixel_model(), paint_grey, "world:prior", 4))
    assert all(each.values.isnan().all() for each in result.select(metric="containment"))
    assert {each.mean() for each in result.select(metric="error")} == {0.0}
    assert {each.mean() for each in result.select(metric="AUC")} <= {0.5}
    check_figure(*EXPERIMENTS["token_noise"].draw(result))  # empty axes, and pictures


def test_noise_that_is_seen_can_be_found_and_noise_that_is_not_cannot() -> None:
    found = {}
    for paint in (paint_patches, paint_mean):
        result = measure(painted(pixel_model(), paint, "world:prior", 16), shares=(0.3,))
        found[paint] = result.one(metric="AUC", noised="backbone", stage="encoder").mean()
        clean, noisy = (result.one(metric=name, noised="backbone", stage="encoder").mean()
                        for name in ("clean input error", "input error"))  # fmt: skip
        assert (clean < 1e-9) == (paint is paint_patches)
        assert noisy > clean
    assert found[paint_patches] > 0.95  # uniform noise beside drawn surfaces
    assert abs(found[paint_mean] - 0.5) < 0.1


def test_the_area_under_a_curve_is_that_of_scikit_learn() -> None:
    scores = torch.tensor([[0.1, 0.4, 0.35, 0.8, 0.4]])
    truth = torch.tensor([[False, False, True, True, True]])
    assert area_under_curve(scores, truth).tolist() == pytest.approx([(2 + 1.5 + 1) / 6])
    assert area_under_curve(scores, torch.zeros_like(truth)).isnan().all()


def test_the_true_local_inverses_are_local(detector: Subject, classifier: Subject) -> None:
    result = Result.join([measure(subject, shares=(0.5,)) for subject in (detector, classifier)])
    for labels in ({"model": "small detr", "inverse": "local"}, {"model": "small vit", "inverse": "chain"}):
        local = result.one(**labels, noised="backbone", stage="backbone", metric="error", region="untouched")
        assert local.values.max() < 1e-13  # colours in [0, 1], which are rounded to 1e-7, squared
        through = result.one(**labels, noised="backbone", stage="encoder", metric="error", region="untouched")
        assert through.values.min() > 1e-10  # the model's attention spreads it


# ---- the parts


def test_routes(detector: Subject, classifier: Subject) -> None:
    three = [("backbone", "backbone"), ("encoder", "encoder"), ("backbone", "encoder")]
    assert routes(classifier) == [Route(*pair) for pair in three]
    assert routes(detector) == [Route(*pair, inverse) for inverse in ("chain", "local") for pair in three]
    assert routes(detector)[3].options(detector) == {"via": {"backbone": "local"}}


def test_patches_of_tokens() -> None:
    layout = Layout(tokens=1 + 6, width=4, grids=((2, 3),), prefix=1)
    chosen = torch.tensor([[False, True, False, False, False, False, True]])
    pixels = patch_pixels(chosen, layout, (16, 24))
    expected = torch.zeros(1, 16, 24, dtype=torch.bool)
    expected[0, :8, :8], expected[0, 8:, 16:] = True, True
    assert torch.equal(pixels, expected)
    # A grid that was rounded up: the last patches reach over the edge.
    chosen = torch.tensor([[False, False, False, False, False, True]])
    pixels = patch_pixels(chosen, Layout(tokens=6, width=4, grids=((2, 3),)), (50, 70))
    expected = torch.zeros(1, 50, 70, dtype=torch.bool)
    expected[0, 32:, 64:] = True
    assert torch.equal(pixels, expected)
    # A pyramid is covered by its coarsest patches.
    pyramid = Layout(tokens=24 + 6, width=4, grids=((4, 6), (2, 3)))
    chosen = choose_tokens(pyramid, 0.5, generator_for(0, "a"))[None]
    assert float(patch_pixels(chosen, pyramid, (16, 24)).float().mean()) == 0.5


def test_the_noise_is_the_same_whatever_the_batches(classifier: Subject) -> None:
    other = Subject(classifier.model, classifier.ensemble, classifier.data, num_images=3, batch_size=2)
    one, two = (measure(each, shares=(0.3,), num_pictures=0) for each in (classifier, other))
    assert_same_values(one, two)
    assert not torch.equal(measure(other, shares=(0.3,), seed=1).measurements[0].values, two.measurements[0].values)


def test_a_pyramid_is_noised_at_all_levels() -> None:
    result = measure(random_subject("deformable_detr", num_images=2), shares=(0.5,), noise="zero")
    noised = result.one(noised="backbone", stage="backbone", metric="error", region="noised")
    assert noised.values.shape == (2, 2)
    assert noised.values.min() > 0
    assert len(result.select(metric="containment")) == 3


def test_tokens_cannot_be_swapped_with_nobody(classifier: Subject) -> None:
    alone = Subject(classifier.model, classifier.ensemble, classifier.data, num_images=3, batch_size=2)
    with pytest.raises(UserError, match="single image"):
        measure(alone, noise="swap")
    result = measure(classifier, noise="swap", shares=(0.5,))
    assert result.one(noised="backbone", stage="backbone", metric="containment").mean() == pytest.approx(1)


def test_contract(detector: Subject, classifier: Subject, tmp_path: Path) -> None:
    loaded = check_contract("token_noise", [detector, classifier], tmp_path, shares=[0.1, 0.5])
    assert loaded.values_of("share") == [0.1, 0.5]
    assert all(each.values.shape == (2, 3) for each in loaded.measurements)
    assert len(loaded.shown(model="small detr", inverse="local", share=0.5, shows="input")) == 3

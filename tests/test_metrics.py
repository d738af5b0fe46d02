"""Image metrics against scikit-image and known answers; intervals against scipy and simulation."""

import math
from itertools import pairwise

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from skimage import metrics as scikit
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from backsight.core import UserError
from backsight.metrics import dists, interval, lpips, mse, multiscale_ssim, psnr, ratio, saturation, ssim
from backsight.metrics.image import HIGHEST_PSNR
from backsight.metrics.probe import fit_probe
from backsight.metrics.statistics import Estimate, difference, estimate, estimate_share_difference, holm

METRICS = {"mse": mse, "psnr": psnr, "ssim": ssim}


def scikit_mse(a, b):
    return scikit.mean_squared_error(a, b)


def scikit_psnr(a, b):
    return scikit.peak_signal_noise_ratio(a, b, data_range=1.0)


def scikit_ssim(a, b):
    return scikit.structural_similarity(
        a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=0
    )


SECOND = {"mse": scikit_mse, "psnr": scikit_psnr, "ssim": scikit_ssim}


def pictures(seed: int = 0, batch: int = 4, size: tuple[int, int] = (37, 52)) -> tuple[Tensor, Tensor]:
    """Smooth random images, and versions of them with more and more noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 5, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    noise = torch.randn(images.shape, generator=generator) * torch.linspace(0.01, 0.4, batch)[:, None, None, None]
    return images, (images + noise).clamp(0, 1)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("size", [(37, 52), (11, 11), (64, 20)])
def test_agrees_with_scikit_image(name: str, size: tuple[int, int]):
    images, others = pictures(size=size)
    ours = METRICS[name](images, others)
    theirs = [SECOND[name](a.double().numpy(), b.double().numpy()) for a, b in zip(images, others, strict=True)]
    assert ours.shape == (4,)
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=1e-6)


def test_identical_images():
    images, _ = pictures()
    assert mse(images, images).tolist() == [0.0] * 4
    assert psnr(images, images).tolist() == [HIGHEST_PSNR] * 4
    assert ssim(images, images) == pytest.approx(1.0)


def test_known_answers():
    black, grey = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.1)
    assert mse(black, grey).item() == pytest.approx(0.01)
    assert psnr(black, grey).item() == pytest.approx(20.0)
    luminance = 0.01**2 / (0.1**2 + 0.01**2)
    assert ssim(black, grey).item() == pytest.approx(luminance)


@pytest.mark.parametrize("name", METRICS)
def test_symmetric_and_worse_with_more_noise(name: str):
    images, others = pictures()
    there, back = METRICS[name](images, others), METRICS[name](others, images)
    torch.testing.assert_close(there, back)
    signed = there if name == "mse" else -there
    assert all(near < far for near, far in pairwise(signed.tolist()))


def test_mse_inside_a_mask():
    images, others = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    others[:, :, :2] = 1.0
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, :4] = True
    error, undefined = mse(images, others, mask).tolist()
    assert error == 0.5
    assert math.isnan(undefined)
    everywhere = mse(images, others, torch.ones_like(mask))
    torch.testing.assert_close(everywhere, mse(images, others))


@pytest.mark.parametrize("name", METRICS)
def test_shapes_are_checked(name: str):
    with pytest.raises(ValueError, match="B 3 H W"):
        METRICS[name](torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17))


def test_a_wrong_mask_is_refused():
    with pytest.raises(ValueError, match="B H W"):
        mse(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool))


def test_ssim_of_tiny_images_is_refused():
    with pytest.raises(UserError, match="11 x 11"):
        ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


@pytest.mark.parametrize(("metric", "network"), [(lpips, "alexnet"), (dists, "vgg16")])
def test_a_learned_metric_without_weights_says_what_to_do(metric, network: str, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=network) as error:
        metric(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))
    assert str(tmp_path) in str(error.value)


def test_a_picture_at_several_scales_agrees_with_torchmetrics():
    images, others = pictures(size=(192, 208))
    exponents = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    one, other = images.double(), others.double()
    theirs = multiscale_structural_similarity_index_measure(
        one, other, data_range=1.0, betas=exponents, normalize="relu", reduction="none", k1=0.01, k2=0.03
    )
    # Theirs multiplies means over channels, ours takes the mean over channels of products.
    torch.testing.assert_close(multiscale_ssim(images, others), theirs, atol=5e-3, rtol=0)
    assert multiscale_ssim(images, images) == pytest.approx(1.0)
    small, noisy = pictures(size=(11, 14))
    torch.testing.assert_close(multiscale_ssim(small, noisy), ssim(small, noisy).clamp(min=0), atol=0.05, rtol=0)


# ---- intervals


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_constant_values_give_no_width():
    for value in (0.3, -1e6, 0.0):
        found = estimate(torch.full((3, 9), value, dtype=torch.float64)).interval()
        assert found.low == found.high == found.mean == value


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.floats(0.1, 10), st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_an_interval_moves_and_scales_with_the_values(values: list[float], scale: float, shift: float):
    numbers = torch.tensor(values, dtype=torch.float64)
    plain, moved = estimate(numbers).interval(), estimate(scale * numbers + shift).interval()
    assert moved == pytest.approx([scale * bound + shift for bound in plain], abs=1e-6)


@pytest.mark.parametrize("values", [normal(25), normal(3)[:, None]], ids=["images of one seed", "means of three seeds"])
def test_of_one_kind_it_is_the_interval_of_student(values: Tensor):
    flat = values.flatten().numpy()
    low, high = stats.t.interval(0.95, len(flat) - 1, flat.mean(), stats.sem(flat))
    assert estimate(values).interval() == pytest.approx((flat.mean(), low, high))


def test_seeds_count_as_well_as_images():
    """Seeds that disagree widen the interval, even when every image agrees; three of them as Student's t says."""
    images, seeds = normal(200) / 100, torch.tensor([-0.5, 0.0, 0.5])[:, None]
    apart, together = estimate(images + seeds), estimate(images.expand(3, -1))
    assert apart.error > 5 * together.error
    assert apart.freedom == pytest.approx(2, rel=0.01)
    assert together.freedom == pytest.approx(199)


def test_a_ratio_of_equal_values_is_sure_and_agrees_with_the_bootstrap():
    units = 0.5 + torch.rand(1, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert estimate(ratio(units, units)).interval() == (1, 1, 1)
    values = 0.8 * units + 0.05 * normal(1, 60)
    found = estimate(ratio(values, units)).interval()
    theirs = stats.bootstrap(
        (values[0].numpy(), units[0].numpy()), lambda v, u, axis=-1: v.mean(axis) / u.mean(axis), paired=True,
        n_resamples=2000, random_state=0,
    ).confidence_interval  # fmt: skip
    assert found.mean == pytest.approx(float(values.mean() / units.mean()))
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.15 * (found.high - found.low))
    alone = estimate(values / units.mean()).interval()  # as if the unit were known
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
    assert ratio(torch.tensor([[1.0, math.nan]]), torch.ones(1, 2)).isnan().tolist() == [[False, True]]


def test_shares_of_which_all_are_alike_are_not_sure():
    everything = interval(torch.ones(20), share=True)
    wilson = stats.binomtest(20, 20).proportion_ci(method="wilson")
    assert (everything.mean, everything.low, everything.high) == pytest.approx((1, wilson.low, wilson.high))
    assert interval(torch.ones(20)) == (1, 1, 1)  # of what is no share
    nothing = estimate_share_difference(torch.zeros(20)).interval()
    assert nothing.mean == 0
    assert nothing.low < -0.05 < 0.05 < nothing.high  # a true loss of a twentieth is not excluded


def test_a_difference_is_that_of_welch():
    one, other = normal(30), 2 * normal(50, seed=1) + 1
    found = difference(estimate(one), estimate(other))
    theirs = stats.ttest_ind(one.numpy(), other.numpy(), equal_var=False)
    assert found.interval() == pytest.approx((float(one.mean() - other.mean()), *theirs.confidence_interval()))
    assert 2 * found.chance_below(0) == pytest.approx(theirs.pvalue)
    assert found.chance_below(0.3) + found.chance_above(0.3) == pytest.approx(1)


def test_several_claims_at_once_are_corrected_as_statsmodels_does():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.parametrize("values", [torch.zeros(0), torch.zeros(2, 2, 2), torch.tensor([1.0, torch.nan])])
def test_values_without_a_mean_are_refused(values: Tensor):
    with pytest.raises(ValueError, match=r"finite|shape"):
        estimate(values)


GENERATOR = torch.Generator().manual_seed(7)


def gauss(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=GENERATOR, dtype=torch.float64)


def study(seeds: int, images: int, by_seed: float, by_image: float = 1.0, rest: float = 0.5) -> Tensor:
    return by_seed * gauss(seeds, 1) + by_image * gauss(1, images) + rest * gauss(seeds, images)


def ratio_study() -> Estimate:
    units = 0.5 + uniform(1, 40)
    return estimate(ratio(units * (0.8 + 0.05 * gauss(3, 1) + 0.1 * gauss(1, 40) + 0.1 * gauss(3, 40)), units))


def share_study() -> Estimate:
    chance = uniform(40)
    return estimate_share_difference((chance < 0.25).double() - (chance > 0.9).double())


STUDIES = {
    "images of one seed, skewed": (4.0, lambda: estimate(sum(gauss(40) ** 2 for _ in range(4)))),
    "3 seeds, 40 images": (0.0, lambda: estimate(study(3, 40, 0.3))),
    "5 seeds, 100 images": (0.0, lambda: estimate(study(5, 100, 0.2))),
    "3 seeds, as unlike as images": (0.0, lambda: estimate(study(3, 100, 1.0))),
    "3 seeds alone": (0.0, lambda: estimate(gauss(3, 1))),
    "2 seeds alone": (0.0, lambda: estimate(gauss(2, 1))),
    "ratio, 3 seeds, 40 images": (0.8, ratio_study),
    "a share of 40 images": (0.9, lambda: interval((uniform(40) < 0.9).double(), share=True)),
    "difference of two shares of 40 images": (0.15, share_study),
    "difference of two models": (0.0, lambda: difference(estimate(study(3, 40, 0.3)), estimate(study(3, 60, 0.2, 2)))),
}
"""A true value, and an experiment that estimates it."""


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_intervals_hold_the_true_value_in_95_percent_of_made_up_experiments(name: str):
    truth, estimated = STUDIES[name]
    GENERATOR.manual_seed(7)
    hits = 0
    for _ in range(2000):
        found = estimated()
        found = found.interval() if isinstance(found, Estimate) else found
        hits += found.low <= truth <= found.high
    print(f"{name}: {hits / 20:.1f} %")
    assert 0.93 <= hits / 2000 <= 0.97


def test_saturation_is_the_mean_spread_of_the_channels():
    images = torch.zeros(3, 3, 2, 2)
    images[0] = 0.4  # grey
    images[1, 0] = 1.0  # red
    images[2, :, 0] = torch.tensor([0.5, 0.3, 0.2])[:, None]  # half of it brown, the rest black
    assert saturation(images, torch.rand(3, 3, 2, 2)).tolist() == pytest.approx([0.0, 1.0, 0.15])


# ---- the probe


def examples(num: int, width: int, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num, width, generator=generator) * torch.linspace(0.1, 10, width) + 3
    weights = torch.randn(width, 2, generator=generator)
    return features, features @ weights + noise * torch.randn(num, 2, generator=generator)


@pytest.mark.parametrize(("num", "width"), [(200, 8), (60, 100)], ids=["more examples", "more features"])
def test_probe_is_least_squares_with_the_penalty_as_more_examples(num, width):
    features, targets = examples(num, width, noise=0.1)
    probe = fit_probe(features, targets, penalties=(0.05,))
    scaled = ((features - features.mean(0)) / features.std(0, correction=0)).double().numpy()
    offset = targets.double().numpy().mean(0)
    penalty = numpy.eye(width) * math.sqrt(0.05 * num)
    weights, *_ = numpy.linalg.lstsq(
        numpy.vstack([scaled, penalty]),
        numpy.vstack([targets.double().numpy() - offset, numpy.zeros((width, 2))]),
        rcond=None,
    )
    torch.testing.assert_close(probe(features), torch.from_numpy(scaled @ weights + offset), atol=1e-4, rtol=1e-4)


def test_what_is_linear_is_read_exactly():
    features, targets = examples(300, 10)
    torch.testing.assert_close(fit_probe(features, targets)(features), targets.double(), atol=0.3, rtol=0.01)
    assert fit_probe(features, targets).penalty == 1e-3


def test_noise_is_answered_with_the_mean():
    generator = torch.Generator().manual_seed(1)
    features, targets = torch.randn(60, 40, generator=generator), torch.randn(60, 1, generator=generator)
    probe = fit_probe(features, targets)
    assert probe.penalty == 100.0
    assert probe(features).std() < 0.2 * targets.std()
    assert math.isclose(float(probe(features).mean()), float(targets.mean()), abs_tol=1e-5)


def test_a_feature_that_never_changes_does_no_harm():
    features, targets = examples(50, 4)
    features = torch.cat([features, torch.ones(50, 1)], 1)
    assert fit_probe(features, targets)(features).isfinite().all()


def test_too_few_examples_are_refused():
    with pytest.raises(ValueError, match="ten examples"):
        fit_probe(torch.ones(9, 2), torch.ones(9, 1))

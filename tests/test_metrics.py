"""Image metrics against scikit-image and known answers; bootstrap intervals against simulation."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import metrics as scikit
from torch import Tensor

from backsight.core import UserError
from backsight.metrics import Interval, bootstrap, lpips, mse, psnr, saturation, ssim
from backsight.metrics.image import HIGHEST_PSNR

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


def test_lpips_without_weights_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="alexnet") as error:
        lpips(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@given(
    value=st.floats(-1e6, 1e6),
    seeds=st.integers(1, 4),
    images=st.integers(1, 30),
)
@settings(max_examples=30, deadline=None)
def test_constant_values_give_no_width(value: float, seeds: int, images: int):
    interval = bootstrap(torch.full((seeds, images), value, dtype=torch.float64), num=50)
    assert interval.low == interval.high == interval.mean == pytest.approx(value)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.floats(0.1, 10), st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_moves_and_scales_with_the_values(values: list[float], scale: float, shift: float):
    numbers = torch.tensor(values, dtype=torch.float64)
    plain, moved = bootstrap(numbers, num=200), bootstrap(scale * numbers + shift, num=200)
    assert moved == pytest.approx([scale * bound + shift for bound in plain], abs=1e-6)
    assert min(values) - 1e-9 <= plain.low <= plain.high <= max(values) + 1e-9


def test_one_dimension_is_one_seed():
    values = torch.rand(25, generator=torch.Generator().manual_seed(1))
    assert bootstrap(values) == bootstrap(values[None])
    assert isinstance(bootstrap(values), Interval)


def test_the_same_seed_gives_the_same_interval():
    values = torch.rand(3, 40, generator=torch.Generator().manual_seed(2))
    assert bootstrap(values, seed=5) == bootstrap(values, seed=5)
    assert bootstrap(values, seed=5) != bootstrap(values, seed=6)


def test_standard_error_of_a_mean():
    """With one seed the interval is the textbook one: mean +- 1.96 sigma / sqrt(images)."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    interval = bootstrap(values, num=20_000)
    half = 1.96 * values.std(unbiased=False).item() / 20
    assert interval.mean == pytest.approx(values.mean().item())
    assert interval.high - interval.mean == pytest.approx(half, rel=0.05)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.05)


def test_draws_in_several_chunks_are_all_used(monkeypatch):
    values = torch.rand(2, 50, generator=torch.Generator().manual_seed(4))
    whole = bootstrap(values, num=4000)
    monkeypatch.setattr("backsight.metrics.statistics._DRAWS_AT_ONCE", 50 * 300)
    assert bootstrap(values, num=4000) == pytest.approx(whole, rel=0.02)


def test_seeds_count_as_well_as_images():
    """Seeds that disagree widen the interval, even when every image agrees."""
    images = torch.rand(200, generator=torch.Generator().manual_seed(5))
    seeds = torch.tensor([-0.5, 0.0, 0.5])[:, None]
    apart, together = bootstrap(images + seeds), bootstrap(images.expand(3, -1))
    assert apart.high - apart.low > 5 * (together.high - together.low)


def test_coverage_over_seeds_and_images():
    """Of 300 simulated studies with random seeds and random images about 95 % hold the true mean."""
    generator = torch.Generator().manual_seed(6)
    hits = 0
    for study in range(300):
        image_effect = torch.randn(1, 60, generator=generator)
        seed_effect = torch.randn(12, 1, generator=generator) * 0.3
        noise = torch.randn(12, 60, generator=generator) * 0.3
        interval = bootstrap(2.0 + image_effect + seed_effect + noise, num=300, seed=study)
        hits += interval.low <= 2.0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.99


@pytest.mark.parametrize("values", [torch.zeros(0), torch.zeros(2, 2, 2), torch.tensor([1.0, torch.nan])])
def test_values_without_a_mean_are_refused(values: Tensor):
    with pytest.raises(ValueError, match=r"finite|shape"):
        bootstrap(values)


def test_saturation_is_the_mean_spread_of_the_channels():
    images = torch.zeros(3, 3, 2, 2)
    images[0] = 0.4  # grey
    images[1, 0] = 1.0  # red
    images[2, :, 0] = torch.tensor([0.5, 0.3, 0.2])[:, None]  # half of it brown, the rest black
    assert saturation(images, torch.rand(3, 3, 2, 2)).tolist() == pytest.approx([0.0, 1.0, 0.15])

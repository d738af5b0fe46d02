"""Similarity of representations: known answers, and a second implementation that follows the papers word by word."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backsight.core import UserError
from backsight.metrics import centred_gram, cka, cka_shares, correlations, hsic


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_hsic(one: Tensor, other: Tensor) -> float:
    """HSIC_1 of Song et al. (2012), eq. 5, as it stands there."""
    count = len(one)
    k = one.flatten(1) @ one.flatten(1).T
    m = other.flatten(1) @ other.flatten(1).T
    k, m = k - k.diag().diag(), m - m.diag().diag()
    ones = torch.ones(count, dtype=torch.float64)
    first = (k @ m).trace()
    second = (ones @ k @ ones) * (ones @ m @ ones) / ((count - 1) * (count - 2))
    third = 2 / (count - 2) * (ones @ k @ m @ ones)
    return float((first + second - third) / (count * (count - 3)))


def naive_cka(one: Tensor, other: Tensor) -> float:
    return naive_hsic(one, other) / math.sqrt(naive_hsic(one, one) * naive_hsic(other, other))


@given(st.integers(4, 12), st.integers(1, 5), st.integers(1, 7), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_the_second_implementation_agrees(images: int, width: int, other_width: int, seed: int):
    one, other = normal(images, width, 3, seed=seed), normal(images, other_width, seed=seed + 1) + 5
    grams = torch.stack([centred_gram(one), centred_gram(other)])
    table = hsic(grams)
    assert float(table[0, 1]) == pytest.approx(naive_hsic(one, other), abs=1e-9, rel=1e-9)
    assert float(table[1, 1]) == pytest.approx(naive_hsic(other, other), rel=1e-6)
    assert cka(one, other) == pytest.approx(naive_cka(one, other), abs=1e-6)


def test_equal_up_to_a_rotation_a_scale_and_a_shift():
    features = normal(10, 7, 5)
    rotation = torch.linalg.qr(normal(35, 35, seed=1)).Q
    assert cka(features, features) == pytest.approx(1)
    assert cka(features, features.flatten(1) @ rotation) == pytest.approx(1)
    assert cka(features, -30 * features) == pytest.approx(1)
    assert cka(features, features + 100 * normal(1, 7, 5, seed=2)) == pytest.approx(1)
    assert cka(features, features * torch.linspace(0, 30, 35).view(7, 5).double()) < 0.95  # not one scale for all


def test_independent_noise_is_near_zero_in_batches_of_any_size():
    large = cka(normal(300, 40), normal(300, 60, seed=1))
    assert abs(large) < 0.03
    small = [cka(normal(5, 400, seed=2 * seed), normal(5, 400, seed=2 * seed + 1)) for seed in range(200)]
    assert abs(sum(small) / len(small)) < 0.08
    # The usual, biased estimator calls the same noise alike: with 5 images in 400 dimensions it is far above.
    centre = torch.eye(5, dtype=torch.float64) - 1 / 5
    one, other = (centre @ (x @ x.T) @ centre for x in (normal(5, 400), normal(5, 400, seed=1)))
    assert (one * other).sum() / (one.norm() * other.norm()) > 0.8


def test_minibatches_are_averaged_before_the_ratio():
    ones, others = [normal(6, 4, seed=s) for s in range(3)], [normal(6, 9, seed=9 + s) for s in range(3)]
    others = [torch.cat([one, other], 1) for one, other in zip(ones, others, strict=True)]
    tables = torch.stack(
        [hsic(torch.stack([centred_gram(a), centred_gram(b)])) for a, b in zip(ones, others, strict=True)]
    )
    both = range(len(ones))
    cross = sum(naive_hsic(ones[each], others[each]) for each in both)
    own = [sum(naive_hsic(parts[each], parts[each]) for each in both) for parts in (ones, others)]
    assert float(cka_shares(tables, [6] * 3)[:, 0, 1].mean()) == pytest.approx(cross / math.sqrt(own[0] * own[1]))
    assert cka_shares(tables, [6] * 3).mean(0).diagonal().tolist() == pytest.approx([1, 1])

    plain = tables / (tables.mean(0).diagonal()[:, None] * tables.mean(0).diagonal()).sqrt()
    torch.testing.assert_close(cka_shares(tables, [6] * 3), plain)  # of one size: each batch's own HSIC


def minibatch_cka(one: Tensor, other: Tensor, size: int) -> float:
    """Of ``images D`` each, in batches of ``size`` and a smaller last one."""
    pairs = list(zip(one.split(size), other.split(size), strict=True))
    tables = torch.stack([hsic(torch.stack([centred_gram(a), centred_gram(b)])) for a, b in pairs])
    return float(cka_shares(tables, [len(a) for a, _ in pairs])[:, 0, 1].mean())


def test_a_small_last_batch_makes_nothing_less_sure_and_nothing_biased():
    """Of two that share half of what they hold, 200 draws of 6 batches of 16 images, and of 4 more images."""
    alone, longer = [], []
    for draw in range(200):
        shared, one, other = (normal(100, 10, seed=3 * draw + part) for part in range(3))
        pair = torch.cat([shared, one], 1), torch.cat([shared, other], 1)
        alone.append(minibatch_cka(*(each[:96] for each in pair), 16))
        longer.append(minibatch_cka(*pair, 16))
    alone, longer = torch.tensor(alone), torch.tensor(longer)
    assert longer.std() <= alone.std()
    # All as they are in the population: half of the variance of each is shared, CKA is 10 / 20.
    assert float(longer.mean()) == pytest.approx(0.5, abs=3 * float(longer.std()) / 200**0.5 + 0.005)


def test_a_batch_weighs_by_its_number_of_images():
    ones, others = [normal(n, 4, seed=n) for n in (4, 9, 16)], [normal(n, 3, seed=n).exp() for n in (4, 9, 16)]
    grams = [torch.stack([centred_gram(a), centred_gram(b)]) for a, b in zip(ones, others, strict=True)]
    found = cka_shares(torch.stack([hsic(each) for each in grams]), [4, 9, 16])
    joined = sum(each.flatten(1) @ each.flatten(1).T for each in grams)  # n (n - 3) times HSIC: its divisor falls out
    assert float(found[:, 0, 1].mean()) == pytest.approx(float(joined[0, 1] / (joined[0, 0] * joined[1, 1]).sqrt()))
    equal = cka_shares(torch.ones(3, 2, 2, dtype=torch.float64), [4, 9, 16])
    torch.testing.assert_close(equal, torch.ones(3, 2, 2, dtype=torch.float64))  # unequal weights alone spread nothing
    with pytest.raises(ValueError, match="at least 4 images"):
        cka_shares(torch.ones(2, 2, 2), [16, 3])


def test_what_is_the_same_for_all_images_has_no_answer():
    constant = normal(1, 8).expand(6, 8)
    assert torch.equal(centred_gram(constant), torch.zeros(6, 6, dtype=torch.float64))
    assert math.isnan(cka(normal(6, 8, seed=1), constant))


def test_too_few_images_are_refused_in_one_line():
    with pytest.raises(UserError, match="at least 4 images in a batch, there are 3"):
        centred_gram(normal(3, 5))
    with pytest.raises(ValueError, match="of 4 and 5"):
        cka(normal(4, 2), normal(5, 2))


def test_correlations_are_those_of_numpy_on_what_differs_from_the_mean():
    layers = [normal(5, 4, 3, seed=seed) + 10 * normal(1, 4, 3, seed=9) for seed in range(3)]
    found = correlations(layers)
    assert found.shape == (5, 3, 3)
    for image in range(5):
        rows = [(layer[image] - layer.mean(0)).flatten().numpy() for layer in layers]
        assert torch.allclose(found[image], torch.from_numpy(numpy.corrcoef(rows)))


def test_what_all_images_share_is_no_correlation():
    shared = 100 * normal(1, 600)
    found = correlations([normal(8, 600) + shared, normal(8, 600, seed=1) + shared])
    assert found[:, 0, 1].abs().max() < 0.2
    raw = torch.corrcoef(torch.stack([(normal(8, 600) + shared)[0], (normal(8, 600, seed=1) + shared)[0]]))
    assert raw[0, 1] > 0.99


def test_known_correlations():
    layer = normal(4, 6, 2)
    found = correlations([layer, 3 * layer + 7, -layer, layer[:1].expand_as(layer)])
    assert found[:, 0, 1].tolist() == pytest.approx([1] * 4)
    assert found[:, 0, 2].tolist() == pytest.approx([-1] * 4)
    assert found[:, 0, 3].isnan().all()
    with pytest.raises(ValueError, match="of one shape"):
        correlations([layer, layer[:, :3]])

import math

import numpy
import pytest
import torch

from backsight.metrics.probe import fit_probe


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

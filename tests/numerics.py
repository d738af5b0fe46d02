"""What "the same" means between two computations, in one place.

One process that computes twice with one object, on the same tensors, gets the same bits: compare with
``torch.equal``.

Everything else agrees to rounding alone. Which kernel runs, and in which order it adds, depends on the CPU, on the
number of threads, on the address of a tensor in memory (one that was read from a file lies elsewhere than one that
was made here) and on the size of the batch. Two model objects, a chain and its copy from a file, a batch and a part
of it: compare these with :func:`assert_rounding`. Its tolerance is some hundred times the rounding of single
precision, and some hundred times below what the smallest fault does: a weight that was not read, a grid shifted by
one token, a normalisation left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backsight.results import Result

ROUNDING = 1e-5
"""Of the largest value: features of a deep network add up thousands of products, each rounded to 6e-8."""


def assert_rounding(actual: Any, expected: Any, tolerance: float = ROUNDING) -> None:
    """Tensors, or nested containers of them, agree up to ``tolerance`` times the largest absolute value of each.

    Small values beside large ones carry the rounding of the large ones they were computed from, so the scale is that of
    the whole tensor. Whole numbers and booleans have to be equal.
    """
    if isinstance(expected, Mapping):
        assert actual.keys() == expected.keys()
        for name in expected:
            assert_rounding(actual[name], expected[name], tolerance)
    elif isinstance(expected, Sequence) and not isinstance(expected, str):
        assert len(actual) == len(expected)
        for mine, theirs in zip(actual, expected, strict=True):
            assert_rounding(mine, theirs, tolerance)
    elif isinstance(expected, Tensor) and expected.is_floating_point() and expected.numel():
        actual, expected = actual.detach(), expected.detach()
        finite = expected[expected.isfinite()]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance * scale, equal_nan=True)
    elif isinstance(expected, Tensor):
        assert torch.equal(actual, expected)
    else:
        assert actual == expected


def assert_same_values(actual: Result, expected: Result, tolerance: float = 1e-4) -> None:
    """Two results of an experiment have the same measurements; values agree up to ``tolerance`` of the largest.

    An AUC counts pairs that are in order, and rounding may turn one of them round: a hundredth is given.
    """
    for mine, theirs in zip(actual.measurements, expected.measurements, strict=True):
        assert mine.labels == theirs.labels
        assert_rounding(mine.values, theirs.values, 0.01 if mine.labels["metric"] == "AUC" else tolerance)


def assert_same_weights(actual: nn.Module, expected: nn.Module) -> None:
    """Weights are copied, not computed: every one comes back bit for bit.

    The output of an untrained network hardly depends on some of them: it would not tell.
    """
    found, wanted = actual.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name

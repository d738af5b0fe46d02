"""Fixtures that several test files share.

They import what they need when they need it: the process that hands out the tests reads this file too, and would keep
its workers waiting.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from backsight.engine import StagedModel

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported: no test asks the network

# How quick the machine is says nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What uses ``model``, and has none of its own, is a contract of all families."""
    if "model" in metafunc.fixturenames and not hasattr(metafunc.module, "model"):
        from backsight.models import MODELS

        metafunc.parametrize("model", MODELS, indirect=True)


@pytest.fixture(scope="session")
def small_model() -> Callable[[str], StagedModel]:
    """``small_model(family)``: a small random model, one for the whole session; whoever changes it builds their own."""
    from small import build_small

    return lru_cache(build_small)


@pytest.fixture(scope="session")
def detr(small_model: Callable[[str], StagedModel]) -> StagedModel:
    """The small DETR: width 32, a grid of 2 x 3 with stride 32, seven queries, four classes and "no object"."""
    return small_model("detr")


@pytest.fixture(scope="session")
def vit(small_model: Callable[[str], StagedModel]) -> StagedModel:
    """The small ViT of timm."""
    return small_model("vit")


@pytest.fixture(scope="session")
def detector() -> StagedModel:
    """The detector of the zoo that was trained on ``world:prior``."""
    from backsight.models import load_model

    return load_model("zoo/detr-prior")


@pytest.fixture
def model(request: pytest.FixtureRequest, small_model: Callable[[str], StagedModel]) -> StagedModel:
    """A small model of every family, one after the other."""
    return small_model(request.param)


@pytest.fixture
def test_data() -> Callable[[str], Path]:
    """``test_data(name)``: the folder of real photos below $BACKSIGHT_TEST_DATA; without it, the test is skipped."""
    from pictures import real_data

    return real_data

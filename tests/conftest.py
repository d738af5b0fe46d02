"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported: no test asks the network

from backsight.engine import StagedModel
from backsight.models import MODELS
from pictures import real_data
from small import build_small

# How quick the machine is says nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def small_model() -> Callable[[str], StagedModel]:
    """``small_model(family)``: a small random model, one for the whole session; whoever changes it builds their own."""
    return lru_cache(build_small)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, small_model: Callable[[str], StagedModel]) -> StagedModel:
    """A small model of every family, one after the other: what uses it is a contract of all families."""
    return small_model(request.param)


@pytest.fixture
def test_data() -> Callable[[str], Path]:
    """``test_data(name)``: the folder of real photos below $BACKSIGHT_TEST_DATA; without it, the test is skipped."""
    return real_data

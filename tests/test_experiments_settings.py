"""Settings of all experiments: what is out of range is told before anything is computed, the least that is allowed
is done to the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from backsight.core import UserError
from backsight.experiments import EXPERIMENTS, Subject, run_experiment, truth
from backsight.experiments.run import check_settings
from known_chains import random_subject
from marks import quick


def settings_of(measure: Callable[..., Any]) -> dict[str, Any]:
    """Their defaults, by name."""
    found = signature(measure).parameters.values()
    return {each.name: each.default for each in found if each.name != "subject"}


SETTINGS = [(name, setting) for name, each in EXPERIMENTS.items() for setting in settings_of(each.measure)]


def wrong_values(setting: str, default: Any) -> list[Any]:
    if isinstance(default, bool | str):
        return [5, [default]]
    if isinstance(default, int):
        return ["abc", 0.5, True, [3]] + ([-1] if setting != "seed" else [])
    if isinstance(default, float):
        return ["abc", -1, 1.5, math.nan, math.inf]
    return [[5, "abc"], 5, [[]]] if not default or isinstance(default[0], str) else ["abc", [0.1, "abc"], [[0.1]]]


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_a_wrong_setting_is_refused_in_one_line(name: str, setting: str):
    measure = EXPERIMENTS[name].measure
    default = settings_of(measure)[setting]
    assert check_settings(measure, {setting: default}).keys() == {setting}
    for value in wrong_values(setting, default):
        with pytest.raises(UserError, match=f"^'{setting}' of "):
            check_settings(measure, {setting: value})


def test_wrong_lists_are_refused_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    subject = random_subject("vit")
    monkeypatch.setattr(Subject, "trace", None)
    for name, settings in (
        ("token_noise", {"shares": []}),
        ("token_noise", {"shares": [0.5, 1.5]}),
        ("token_noise", {"shares": [math.nan]}),
        ("reconstruct", {"rows": []}),
        ("reconstruct", {"rows": ["nothing"]}),
        ("trade_off", {"runs": []}),
    ):
        with pytest.raises(UserError, match=next(iter(settings))):
            run_experiment(EXPERIMENTS[name], [subject], tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


LEAST = {
    "reconstruct": {"num_pictures": 1},
    "intermediate_layers": {"num_pictures": 0},
    "color_perturbation": {"num_pictures": 0},
    "token_noise": {"num_pictures": 0, "seed": -1, "shares": [0.001]},
    "attention_ablation": {"num_pictures": 0, "steps": 1, "batch_size": 1, "learning_rate": 0.0, "seed": -1},
    "prototypes": {"num_pictures": 0, "num_classes": 0},
    "abstraction": {"num_shown": 0, "threshold": 0.0},
    "detection_errors": {"num_shown": 0, "threshold": 1.0},
}


@pytest.mark.parametrize("name", quick(LEAST, "reconstruct", "token_noise", "abstraction", "detection_errors"))
def test_the_least_is_measured_and_drawn(name: str):
    experiment = EXPERIMENTS[name]
    subjects = [each for each in map(random_subject, ("detr", "vit")) if not experiment.fits(each)]
    assert subjects
    for subject in subjects:
        result = experiment.measure(subject, **LEAST[name])
        assert result.measurements
        assert bool(result.pictures) is (name == "reconstruct")
        assert experiment.draw(result)


def test_too_few_scenes_for_a_probe_are_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(truth, "_survivals", None)
    with pytest.raises(UserError, match=r"num_training=3: \d pictures of these scenes have .* a probe needs 10"):
        truth.measure(random_subject("vit"), num_scenes=2, num_training=3)

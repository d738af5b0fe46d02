"""Curves reach the tracker that was asked for; nothing is imported for the others."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backsight.core import Key, UserError
from backsight.training import State
from backsight.training.tracking import Tracker


def send(tracker: Tracker, *steps: int) -> None:
    for step in steps:
        tracker.log(State(step=step), {Key(0, "encoder"): 1 / step}, share=step / 20)


def test_tensorboard_has_the_losses_of_every_tenth_step_and_drops_later_ones_on_resume(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Tracker("tensorboard", tmp_path) as tracker:
        send(tracker, 5, 10, 20)
    with Tracker("tensorboard", tmp_path) as tracker:
        send(tracker, 10, 20)
    events = reading.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss/0/encoder")]
    assert found == [(10, pytest.approx(0.1)), (20, pytest.approx(0.05))]


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_services_get_the_name_of_the_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    service = SimpleNamespace(
        init=lambda **options: calls.append(options),
        log=lambda values, step: calls.append((values, step)),
        finish=lambda: calls.append("end"),
    )
    monkeypatch.setitem(sys.modules, name, service)
    with Tracker(name, tmp_path / "detr") as tracker:
        send(tracker, 3, 10)
    assert calls == [{"project": "backsight", "name": "detr", "resume": "allow"}, ({"loss/0/encoder": 0.1}, 10), "end"]


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'backsight\[wandb\]'"), Tracker("wandb", tmp_path):
        pass
    with Tracker("none", tmp_path) as tracker:
        send(tracker, 10)
    assert list(tmp_path.iterdir()) == []

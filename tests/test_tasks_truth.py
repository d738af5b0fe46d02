"""How well a forward model does its own task: accuracy, average precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from backsight.core import Detections
from backsight.data import Batch, Target
from backsight.engine import StagedModel
from backsight.tasks import performance
from small import build_small, random_images


def target(*boxes: tuple[float, float, float, float], label: int | None = None, crowd: tuple[int, ...] = ()) -> Target:
    """Objects of the classes 0, 1, ... in ``boxes``; those at the places ``crowd`` are crowds."""
    regions = torch.zeros(len(boxes), dtype=torch.bool)
    regions[list(crowd)] = True
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.arange(len(boxes)), None, regions, label)


ONE, TWO = target((8, 4, 40, 36)), target((0, 0, 20, 30), (50, 10, 90, 60))
NONE = target()


def test_performance_is_the_share_of_right_answers(small_model: Callable[[str], StagedModel]):
    model = small_model("vit")
    images = random_images(model, batch=4)
    top = model.predict(model.run(images)).top().tolist()
    labels = [top[0], top[1], (top[2] + 1) % 5, None]
    batch = Batch(images, ("a", "b", "c", "d"), tuple(target(label=each) for each in labels))
    assert performance(model, [batch, batch]) == {"accuracy": pytest.approx(2 / 3)}
    assert performance(model, [Batch(images, batch.ids, (target(),) * 4)]) == {}


def test_performance_of_a_detector_that_answers_the_truth_is_1(monkeypatch: pytest.MonkeyPatch):
    model = build_small("detr")
    batch = Batch(random_images(model), ("a", "b"), (ONE, TWO))
    said = [Detections(each.boxes, torch.ones(len(each.boxes)), each.labels) for each in batch.targets]
    monkeypatch.setattr(model, "read", lambda output, size: said)
    assert performance(model, [batch]) == {"AP": pytest.approx(1.0)}
    assert performance(model, [Batch(batch.images, batch.ids, (NONE, NONE))]) == {}

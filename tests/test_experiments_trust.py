"""How far a reconstruction may be believed: an inverse that knows, one that guesses, and everything in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from backsight.core import UserError
from backsight.engine import StagedModel
from backsight.experiments.trust import MEAN_IMAGE, RECONSTRUCTION, measure
from backsight.metrics import mse
from known_chains import Pictures, check_contract, constant_chain, perfect_subject, subject_of, untrained_subject

COUNT = 6
"""Pictures."""


@pytest.fixture(scope="module", params=["detr", "vit"])
def model(request: pytest.FixtureRequest, small_model: Callable[[str], StagedModel]) -> StagedModel:
    return small_model(request.param)


def test_a_perfect_inverse_is_recognised(model: StagedModel):
    result = measure(perfect_subject(model))
    for stage in model.stages:
        found = {
            metric: result.one(stage=stage, metric=metric, of=RECONSTRUCTION)
            for metric in ("distance", "rank", "found", "mean image distance", "seed spread")
        }
        assert found["distance"].values.shape == (2, COUNT)
        assert found["distance"].values.max() < 1e-3
        assert (found["rank"].values == 1).all()
        assert found["found"].mean() == 1
        assert found["mean image distance"].mean() == pytest.approx(1, abs=1e-6)
        assert found["seed spread"].values.shape == (1, COUNT)
        assert found["seed spread"].mean() == 0


def test_an_inverse_that_paints_another_image_is_caught(model: StagedModel):
    pictures = Pictures(model.pixels.size)
    # One seed for each picture, painting that one whatever it is given: on average over all, the answers are exact.
    subject = subject_of(model, [constant_chain(model, image, seed) for seed, image in enumerate(pictures.floats)])
    result = measure(subject)
    for stage in model.stages:
        distance = result.one(stage=stage, metric="distance", of=RECONSTRUCTION).values
        own = distance.diagonal()
        assert own.max() < 1e-3
        assert (distance.sum() - own.sum()) / (COUNT * (COUNT - 1)) == pytest.approx(1, abs=1e-3)
        ranks = result.one(stage=stage, metric="rank", of=RECONSTRUCTION)
        assert ranks.values.mean(1).tolist() == pytest.approx([(COUNT + 1) / 2] * COUNT)
        found = result.one(stage=stage, metric="found", of=RECONSTRUCTION)
        assert found.values.mean(1).tolist() == pytest.approx([1 / COUNT] * COUNT)
        spread = result.one(stage=stage, metric="seed spread")
        assert spread.mean() == pytest.approx(2, abs=1e-4)
        away = result.one(stage=stage, metric="mean image distance").values
        assert float(away.mean()) == pytest.approx(1, abs=1e-5)
        assert torch.allclose(away, away[:, :1].expand_as(away))


def test_the_input_and_the_mean_image_stand_beside_it(model: StagedModel):
    mean = torch.full((3, *model.pixels.size), 0.5)
    subject = subject_of(model, [constant_chain(model, mean)], mean_image=mean)
    result = measure(subject)
    assert any("one seed" in note for note in result.notes)
    assert not result.select(metric="seed spread")
    for stage in model.stages:
        for metric in ("distance", "rank", "found"):
            painted = result.one(stage=stage, metric=metric, of=RECONSTRUCTION).values
            assert torch.allclose(painted, result.one(stage=stage, metric=metric, of=MEAN_IMAGE).values, atol=1e-4)
        assert result.one(stage=stage, metric="distance", of="input").values.tolist() == [[0.0] * COUNT]
        assert result.one(stage=stage, metric="rank", of="input").mean() == 1
        assert result.one(stage=stage, metric="mean image distance").mean() == pytest.approx(0, abs=1e-9)


def test_features_are_compared_at_the_stage_that_is_inverted(vit: StagedModel):
    subject = untrained_subject(vit, seeds=1)
    result = measure(subject)
    images = torch.cat([batch.images for batch in subject.batches])
    original = vit.run(images)["encoder"].flatten(1)
    again = vit.run(torch.cat([subject.reconstruct(batch, "encoder")[0] for batch in subject.batches]))
    own = (again["encoder"].flatten(1) - original).norm(dim=1)
    others = [
        sum(float((original[i] - original[j]).norm()) for j in range(COUNT) if j != i) / (COUNT - 1)
        for i in range(COUNT)
    ]
    found = result.one(stage="encoder", metric="distance", of=RECONSTRUCTION).values[0]
    assert torch.allclose(found, own.double() / torch.tensor(others), rtol=1e-4)
    units = mse(images, subject.mean_image.expand_as(images)).mean()
    away = mse(
        torch.cat([subject.reconstruct(b, "encoder")[0] for b in subject.batches]), subject.mean_image.expand_as(images)
    )
    assert torch.allclose(result.one(stage="encoder", metric="mean image distance").values[0], away / units)


def test_one_image_is_refused(small_model: Callable[[str], StagedModel]):
    subject = untrained_subject(small_model("vit"), seeds=1, num_images=1)
    with pytest.raises(UserError, match="compares images with each other"):
        measure(subject)


def test_contract(small_model: Callable[[str], StagedModel], tmp_path: Path):
    subjects = [untrained_subject(small_model(name)) for name in ("detr", "vit")]
    result = check_contract("trust", subjects, tmp_path)
    assert {each.labels["of"] for each in result.measurements} == {"reconstruction", "mean image", "input"}

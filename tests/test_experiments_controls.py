"""Controls: untrained inverses and models that have the structure of the trained ones, and nothing of their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from backsight.engine import StagedModel
from backsight.experiments import EXPERIMENTS, run_experiment
from backsight.experiments.controls import controls_of, untrained
from known_chains import perfect_subject, untrained_subject

Models = Callable[[str], StagedModel]


def test_controls_share_the_images_and_the_structure(small_model: Models, tmp_path: Path):
    subject = untrained_subject(small_model("detr"), seeds=2)
    inverse, model = controls_of(subject, num_images=5)
    assert (inverse.name, model.name) == ("small detr, untrained inverse", "small detr, untrained model")
    assert (inverse.model, model.model is subject.model) == (subject.model, False)
    assert model.card()["random"]
    assert inverse.card()["of"] == subject.name
    for each in (inverse, model):
        assert (each.num_images, each.seeds, each.stages) == (5, [0], subject.stages)
        assert torch.equal(each.mean_image, subject.mean_image)
        assert torch.equal(each.batches[0].images, subject.batches[0].images)
    result = run_experiment(EXPERIMENTS["reconstruct"], [subject, inverse], tmp_path, {"num_pictures": 2})
    assert {each.labels["model"] for each in result.pictures} == {subject.name}
    assert result.one(model=inverse.name, stage="encoder", of="seeds").values.shape == (1, 5)


def test_an_untrained_inverse_does_not_know_the_images(small_model: Models):
    subject = perfect_subject(small_model("vit"))
    subject.ensemble.chains[0].plans = untrained_subject(subject.model, 1).ensemble.chains[0].plans
    inverse, _ = controls_of(subject)
    batch = inverse.batches[0]
    assert (subject.reconstruct(batch, "encoder")[0] - batch.images).abs().max() < 1e-4
    assert (inverse.reconstruct(batch, "encoder")[0] - batch.images).abs().mean() > 0.05


def test_an_untrained_model_has_other_weights_and_the_model_keeps_its_own(small_model: Models):
    for family in ("detr", "vit"):
        model = small_model(family)
        before = {name: value.clone() for name, value in model.module.state_dict().items()}
        copy = untrained(model)
        assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
        own = dict(copy.module.named_parameters())
        moved = [name for name, value in model.module.named_parameters() if not torch.equal(value, own[name])]
        assert len(moved) > 0.9 * len(own)
        assert all(value.isfinite().all() for value in own.values())
        assert (copy.stages, copy.spec) == (model.stages, model.spec)
        assert all(map(torch.equal, copy.module.parameters(), untrained(model).module.parameters()))  # by its seed

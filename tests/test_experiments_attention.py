"""Attention taken away: the mask is the library's own, patches are alone, and the model itself stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from backsight.chain import ChainEnsemble, build_chain
from backsight.core import UserError
from backsight.data import open_data
from backsight.engine import StagedModel
from backsight.experiments import Subject
from backsight.experiments.attention_ablation import (
    ALONE,
    FULL,
    TUNED,
    FineTuning,
    fine_tune,
    masked_attention,
    measure,
    patch_attention_mask,
    training_data,
)
from backsight.models import VIT, duplicate, stage_module
from backsight.tasks import make_plans
from backsight.verification import scramble
from known_chains import check_contract
from numerics import assert_rounding
from small import build_small, random_images, small_pixels

DATA = "world:prior:single"


def build_classifier(classes: int = 8) -> StagedModel:
    torch.manual_seed(0)
    module = VisionTransformer(img_size=48, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=classes)
    scramble(module, torch.Generator().manual_seed(0))
    return stage_module(module, VIT, small_pixels(VIT, module), name="small vit")


@pytest.fixture
def model() -> StagedModel:
    return build_classifier()


def subject_of(model: StagedModel, num_images: int = 4) -> Subject:
    ensemble = ChainEnsemble(build_chain(model, make_plans(model), seed).eval() for seed in (0, 1))
    return Subject(model, ensemble, open_data(DATA, model.pixels).test, num_images=num_images)


# ---- the mask


def test_who_attends_to_whom() -> None:
    assert patch_attention_mask(4, 1).int().tolist() == [[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    reading = patch_attention_mask(4, 1, reads_prefix=True)
    assert reading.int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    assert patch_attention_mask(3, 1, own_prefix=False).int().tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 1]]
    assert torch.equal(patch_attention_mask(3, 0), torch.eye(3, dtype=torch.bool))
    assert patch_attention_mask(3, 3).all()
    assert patch_attention_mask(5, 2).any(1).all()
    with pytest.raises(ValueError, match="at most"):
        patch_attention_mask(3, 4)


def test_a_mask_that_allows_everything_is_no_mask(model: StagedModel) -> None:
    images = random_images(model)
    plain = model.run(images)
    with masked_attention(model, torch.ones(37, 37, dtype=torch.bool)):
        masked = model.run(images)
    for name in model.names:
        assert_rounding(masked[name], plain[name])  # another kernel attends where there is a mask
    assert_rounding(masked.output, plain.output)


def test_the_mask_is_that_of_the_library(model: StagedModel) -> None:
    images, mask = random_images(model), patch_attention_mask(37, 1)
    with masked_attention(model, mask):
        ours = model.run(images).output
    theirs = model.module(model.pixels.normalise(images), attn_mask=mask)
    assert_rounding(ours, theirs)
    assert not torch.allclose(ours, model.run(images).output)


def test_patches_are_alone(model: StagedModel) -> None:
    images = random_images(model, batch=1)
    edited = images.clone()
    edited[..., :8, :8] = 0  # the first patch
    mask = patch_attention_mask(37, 1)
    with masked_attention(model, mask):
        before, after = model.run(images)["encoder"][0], model.run(edited)["encoder"][0]
    moved = (before - after).abs().amax(1) > 1e-6
    assert moved.nonzero().flatten().tolist() == [0, 1]  # the class token, which reads all, and the patch itself
    with masked_attention(model, patch_attention_mask(37, 1, reads_prefix=True)):
        mixed = model.run(images)["encoder"][0] - model.run(edited)["encoder"][0]
    assert (mixed.abs().amax(1) > 1e-6).all()  # through the class token


def test_only_some_layers_and_only_as_long_as_it_lasts(model: StagedModel) -> None:
    images = random_images(model)
    plain = model.run(images)
    with masked_attention(model, patch_attention_mask(37, 1), layers=[2]):
        late = model.run(images)
    assert torch.equal(late["encoder.1"], plain["encoder.1"])
    assert not torch.allclose(late["encoder.2"], plain["encoder.2"])
    with pytest.raises(RuntimeError), masked_attention(model, patch_attention_mask(37, 1)):
        raise RuntimeError
    assert torch.equal(model.run(images).output, plain.output)


@pytest.mark.parametrize("family", ["swin", "detr"])
def test_models_without_a_mask_are_refused(family: str) -> None:
    other = build_small(family)
    with pytest.raises(UserError, match="takes no attention mask"), masked_attention(other, torch.ones(1, 1)):
        pass


# ---- fine-tuning


def test_fine_tuning_learns_on_a_copy(model: StagedModel) -> None:
    nn.init.zeros_(model.module.head.weight)
    subject = subject_of(model)
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    mask = patch_attention_mask(37, 1)
    data = training_data(subject)
    assert set(subject.batches[0].ids).isdisjoint({data[index].id for index in range(4)})  # pyright: ignore
    copy = duplicate(model)
    assert_rounding(copy.run(random_images(model)).output, model.run(random_images(model)).output)

    def loss(each: StagedModel) -> float:
        batch = data.batch(range(64))  # pyright: ignore[reportAttributeAccessIssue]
        labels = torch.tensor([target.label for target in batch.targets])
        with masked_attention(each, mask):
            return float(nn.functional.cross_entropy(each.run(batch.images).output, labels))

    before = loss(copy)
    fine_tune(copy, data, FineTuning(steps=12, learning_rate=3e-3, batch_size=16), masked_attention(copy, mask))
    assert loss(copy) < before
    assert not copy.module.training
    assert not any(parameter.requires_grad for parameter in copy.module.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.module.state_dict().items())
    assert not any(block._forward_pre_hooks for block in copy.module.blocks)  # pyright: ignore


def test_data_without_classes_cannot_be_trained_on(model: StagedModel) -> None:
    with pytest.raises(UserError, match="no class of the whole image"):
        training_data(subject_of(model), "world:prior")


def test_classes_that_the_model_does_not_have_are_refused() -> None:
    model = build_classifier(classes=2)
    data = training_data(subject_of(model))
    with pytest.raises(UserError, match="knows 2 classes"):
        fine_tune(model, data, FineTuning(steps=1))
    assert not model.module.training


# ---- the experiment


def test_contract(model: StagedModel, tmp_path: Path) -> None:
    subject = subject_of(model)
    loaded = check_contract("attention_ablation", [subject], tmp_path, steps=2, batch_size=4, num_pictures=2)
    assert loaded.values_of("condition")[:3] == [FULL, ALONE, TUNED]
    assert [each.values.shape for each in loaded.select(metric="accuracy")] == [(1, 4), (1, 4), (3, 4)]  # three copies
    assert {each.values.shape for each in loaded.select(metric="mse")} == {(2, 4)}
    full, alone, tuned = (loaded.one(condition=each, metric="mse", stage="backbone").values
                          for each in (FULL, ALONE, TUNED))  # fmt: skip
    assert torch.equal(full, alone)  # the mask is of the encoder
    assert not torch.equal(full, tuned)
    encoder = [loaded.one(condition=each, metric="mse", stage="encoder").values for each in (FULL, ALONE)]
    assert not torch.equal(*encoder)


def test_the_plain_condition_is_the_model_itself(model: StagedModel) -> None:
    subject = subject_of(model, num_images=6)
    result = measure(subject, steps=0)
    assert result.values_of("condition")[:2] == [FULL, ALONE]
    assert result.select(condition=TUNED) == []
    (batch,) = subject.batches
    labels = torch.tensor([target.label for target in batch.targets])
    right = (model.run(batch.images).output.argmax(-1) == labels).double()
    assert torch.equal(result.one(condition=FULL, metric="accuracy").values[0], right)

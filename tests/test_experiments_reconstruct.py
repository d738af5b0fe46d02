"""Pictures from every stage, and the errors of every stage: known answers, and the contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backsight.core import UserError
from backsight.engine import StagedModel
from backsight.experiments import Result, Subject, reconstruct, stage_error
from backsight.metrics import mse, psnr, ssim
from known_chains import (
    Pictures,
    check_contract,
    check_figure,
    constant_chain,
    perfect_subject,
    subject_of,
    texts_of,
    untrained_subject,
)

Models = Callable[[str], StagedModel]

# ---- reconstruct


def test_a_perfect_chain_shows_the_input_from_everywhere(small_model: Models):
    subject = perfect_subject(small_model("detr"))
    result = reconstruct.measure(subject, num_pictures=5)
    assert {p.labels["image"] for p in result.pictures} == {f"square {number}" for number in range(5)}
    for stage in subject.stages:
        assert result.one(stage=stage, of="seeds").values.shape == (2, 6)
        assert result.one(stage=stage, of="seeds").values.max() < 1e-9
        for source in result.shown(stage="input", row="plain"):
            image = str(source.labels["image"])
            assert torch.allclose(result.shown(stage=stage, image=image, row="mean")[0].image, source.image, atol=1e-5)
            assert result.shown(stage=stage, image=image, row="spread")[0].image.max() < 1e-4


def test_rows_are_mean_spread_and_seeds(small_model: Models):
    model = small_model("vit")
    dark, light = (torch.full((3, *model.pixels.size), value) for value in (0.4, 0.6))
    subject = subject_of(model, [constant_chain(model, dark, 3), constant_chain(model, light, 7)])
    result = reconstruct.measure(subject, num_pictures=1, rows=("mean", "spread", "seeds"))
    pictures = {p.labels["row"]: p.image for p in result.shown(stage="encoder")}
    assert list(pictures) == ["mean", "spread", "seed 3", "seed 7"]
    deviation = 0.2 / 2**0.5  # of 0.4 and 0.6
    for row, value in [("mean", 0.5), ("spread", deviation / reconstruct.WHITE), ("seed 3", 0.4), ("seed 7", 0.6)]:
        assert pictures[row].shape == (3, *model.pixels.size)
        assert torch.allclose(pictures[row], torch.tensor(value), atol=1e-6)
    images = torch.cat([batch.images for batch in subject.batches])
    middle = torch.full_like(images, 0.5)
    assert torch.allclose(result.one(stage="encoder", of="their mean").values[0], mse(middle, images), atol=1e-8)
    check_figure(*reconstruct.draw(result))


def test_every_entry_is_shown_and_detections_on_the_input(small_model: Models, tmp_path: Path):
    subjects = [untrained_subject(small_model("detr"), 1), untrained_subject(small_model("vit"))]
    result = check_contract("reconstruct", subjects, tmp_path, num_pictures=2, threshold=0.0)
    assert "prediction@onehot" in result.values_of("stage")
    assert len(result.shown(row="detected")) == 2
    assert {p.labels["model"] for p in result.shown(row="detected")} == {"small detr"}
    assert any("small detr has one seed" in note for note in result.notes)
    assert {p.labels["model"] for p in result.shown(row="spread")} == {"small vit"}
    assert result.shown(row="detected")[0].image.shape[-1] > subjects[0].model.pixels.size[1]  # enlarged for letters


def named(model: StagedModel, name: str) -> StagedModel:
    return StagedModel(model.module, model.spec, model.pixels, name=name, weights="given")


def test_models_that_saw_the_same_images_share_columns(small_model: Models):
    model = small_model("vit")
    subjects = [untrained_subject(named(model, name), 1) for name in ("one", "other")]

    def titles(*subjects: Subject) -> list[str]:
        results = [reconstruct.measure(each, num_pictures=2, rows=["mean"]) for each in subjects]
        (sheet,) = reconstruct.draw(Result.join(results))
        found = [text.get_text().replace("\n", " ") for text in texts_of(sheet)]
        return [text for text in found if text == "input" or text.endswith(("backbone", "encoder"))]

    assert titles(*subjects) == ["input", "one backbone", "one encoder", "other backbone", "other encoder"]
    other = subject_of(subjects[1].model, subjects[1].ensemble.chains, Pictures(model.pixels.size, seed=1))
    for batch in other.batches:  # other pixels under the same ids: an input of their own
        assert batch.ids[0].startswith("square")
    assert titles(subjects[0], other).count("input") == 2


def test_no_pictures_are_refused(small_model: Models):
    nothing = reconstruct.measure(untrained_subject(small_model("vit"), 1), num_pictures=0)
    assert not nothing.pictures
    with pytest.raises(UserError, match="no pictures to draw"):
        reconstruct.draw(nothing)


# ---- stage_error


def test_the_mean_image_is_the_unit_of_the_relative_error(small_model: Models):
    model = small_model("vit")
    images = Pictures(model.pixels.size).floats
    subject = subject_of(model, [constant_chain(model, images.mean(0))], mean_image=images.mean(0))
    result = stage_error.measure(subject)
    assert result.one(stage="mean image", metric="relative mse").mean() == pytest.approx(1)
    assert result.one(stage="encoder", metric="relative mse").mean() == pytest.approx(1, abs=1e-4)
    assert result.one(stage="mean image", metric="relative mse").interval() == pytest.approx((1, 1, 1))
    painted = result.one(stage="encoder", metric="relative mse").interval()  # of the same picture: as sure
    assert painted.high - painted.low < 1e-3 < result.one(stage="encoder", metric="mse").values.std()
    given = torch.zeros(3, *model.pixels.size)
    black = subject_of(model, [constant_chain(model, images.mean(0))], mean_image=given)
    found = stage_error.measure(black)
    for name, metric in [("mse", mse), ("psnr", psnr), ("ssim", ssim)]:
        expected = metric(given.expand_as(images), images)
        assert torch.allclose(found.one(stage="mean image", metric=name).values[0], expected)


def test_where_the_training_images_are_not_known_their_mean_is_estimated_and_a_note_says_so(small_model: Models):
    model = small_model("vit")
    images = Pictures(model.pixels.size).floats
    plain = mse(images.mean(0).expand_as(images), images)
    found = stage_error.measure(untrained_subject(model, 1))
    assert torch.allclose(found.one(stage="mean image", metric="mse").values[0], plain * 6 / 5, rtol=1e-4)
    assert any("the mean image of the training data is not known" in note for note in found.notes)
    given = stage_error.measure(untrained_subject(model, 1, mean_image=images.mean(0)))
    assert torch.allclose(given.one(stage="mean image", metric="mse").values[0], plain, rtol=1e-4)
    assert not any("mean image" in note for note in given.notes)
    one = stage_error.measure(untrained_subject(model, 1, num_images=1))
    assert one.one(stage="encoder", metric="mse").values.isfinite().all()
    assert one.one(stage="encoder", metric="relative mse").values.isnan().all()
    assert any("no answer" in note for note in one.notes)
    check_figure(*stage_error.draw(one))


def test_what_cannot_be_measured_is_left_out_with_a_note(small_model: Models, monkeypatch: pytest.MonkeyPatch):
    def no_weights(images: Tensor, others: Tensor) -> Tensor:
        raise UserError("LPIPS needs weights")

    monkeypatch.setattr(stage_error, "METRICS", {**stage_error.METRICS, "lpips": no_weights})
    detr, vit = small_model("detr"), small_model("vit")
    result = Result.join([stage_error.measure(untrained_subject(model, 1)) for model in (detr, vit)])
    assert not result.select(metric="lpips")
    assert "small detr: no lpips: LPIPS needs weights" in result.notes
    assert any("small vit: no lpips: it needs images of at least 64 pixels" in note for note in result.notes)
    monkeypatch.setattr(stage_error, "METRICS", {"mse": mse, "lpips": mse})
    found = stage_error.measure(untrained_subject(detr, 1))
    assert torch.equal(
        found.one(stage="encoder", metric="lpips").values, found.one(stage="encoder", metric="mse").values
    )


def test_contract_of_stage_error(small_model: Models, tmp_path: Path):
    subjects = [untrained_subject(small_model(name)) for name in ("detr", "vit")]
    result = check_contract("stage_error", subjects, tmp_path)
    assert {"mse", "psnr", "ssim", "ms-ssim", "relative mse", "layer error"} <= set(result.values_of("metric"))

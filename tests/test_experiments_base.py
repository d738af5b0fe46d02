"""What every experiment stands on: results and their files, subjects that compute once, refusals in one line."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import save_file

from backsight.chain import ChainEnsemble
from backsight.core import UserError
from backsight.data.base import Batch, Target
from backsight.engine import StagedModel
from backsight.evaluation import MeanImage, mean_image_of
from backsight.experiments import EXPERIMENTS, Experiment, Measurement, Picture, Result, Subject, run_experiment
from backsight.experiments import subject as subject_module
from backsight.experiments.controls import controls_of, untrained
from backsight.figures import error_bars
from backsight.metrics import interval
from backsight.results import FORMAT
from known_chains import (
    Pictures,
    perfect_chain,
    perfect_subject,
    random_subject,
    subject_of,
    untrained_chain,
    untrained_subject,
)
from numerics import assert_rounding
from small import build_small

Models = Callable[[str], StagedModel]


def result_of(*measurements: Measurement, **fields: Any) -> Result:
    return Result("an experiment", [{"model": "m"}], measurements, **fields)


# ---- results


@given(arrays("float64", array_shapes(min_dims=2, max_dims=2), elements=st.floats(-1e6, 1e6) | st.just(math.nan)))
@settings(max_examples=50, deadline=None)
def test_values_survive_a_file_with_six_digits(values: Any):
    before = torch.from_numpy(values)
    result = Result.from_json(result_of(Measurement({"stage": "encoder", "layer": 3, "on": True}, before)).to_json())
    after = result.measurements[0].values
    assert result.measurements[0].labels == {"stage": "encoder", "layer": 3, "on": True}
    assert torch.allclose(after, before, rtol=1e-5, atol=0, equal_nan=True)
    assert Result.from_json(result.to_json()).to_json() == result.to_json()


def test_everything_survives_a_file(tmp_path: Path):
    image = (torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    before = result_of(
        Measurement({"stage": "encoder"}, torch.tensor([[0.5, math.inf]])),
        pictures=[Picture({"stage": "input"}, image)],
        settings={"level": 0.1},
        notes=["a note"],
        command="backsight experiment",
    )
    before.save(tmp_path)
    for place in (tmp_path, tmp_path / "result.json"):
        after = Result.load(place)
        assert (after.experiment, after.subjects) == ("an experiment", [{"model": "m"}])
        assert (after.settings, after.notes, after.command) == ({"level": 0.1}, ["a note"], "backsight experiment")
        assert torch.allclose(after.pictures[0].image, image)
        assert after.pictures[0].labels == {"stage": "input"}
        assert after.measurements[0].values[0, 0] == 0.5
        assert after.measurements[0].values[0, 1].isnan()  # a value that is not finite is no answer
    assert json.loads((tmp_path / "result.json").read_text())["format"] == FORMAT


def test_an_image_counts_where_every_seed_has_an_answer():
    measurement = Measurement({}, torch.tensor([[1.0, math.nan, 3.0], [2.0, 5.0, 4.0]]))
    assert measurement.known().tolist() == [[1, 3], [2, 4]]
    assert measurement.mean() == 2.5
    assert measurement.interval() == interval(measurement.known())
    nothing = Measurement({}, torch.full((2, 3), math.nan))
    assert math.isnan(nothing.mean())
    assert all(math.isnan(bound) for bound in nothing.interval())


def test_a_single_value_has_a_mean_and_no_interval():
    single = Measurement({"metric": "AP"}, torch.tensor([[0.42, math.nan]], dtype=torch.float64))
    assert single.interval()[0] == single.mean() == pytest.approx(0.42)
    assert all(math.isnan(bound) for bound in single.interval()[1:])
    (row,) = csv.DictReader(io.StringIO(result_of(single).to_table()))
    assert (row["mean"], row["low"], row["high"], row["images"], row["seeds"]) == ("0.42", "", "", "1", "1")
    for several in (torch.tensor([[0.4, 0.5]]), torch.tensor([[0.4], [0.5]])):
        assert Measurement({}, several).interval() == interval(several)


def test_the_table_has_a_line_for_each_measurement():
    result = result_of(
        Measurement({"stage": "encoder", "metric": "mse"}, torch.tensor([[1.0, 2.0, math.nan]])),
        Measurement({"stage": "encoder", "region": "a, b"}, torch.full((1, 2), math.nan)),
    )
    first, second = csv.DictReader(io.StringIO(result.to_table()))
    assert list(first) == ["stage", "metric", "region", "mean", "low", "high", "images", "seeds"]
    assert (first["mean"], first["images"], first["seeds"], first["region"]) == ("1.5", "2", "1", "")
    assert float(first["low"]) <= 1.5 <= float(first["high"])
    assert (second["region"], second["mean"], second["images"]) == ("a, b", "", "0")


def test_measurements_are_found_by_their_labels():
    one, other = (Measurement({"stage": stage, "metric": "mse"}, torch.ones(1, 1)) for stage in ("encoder", "decoder"))
    result = result_of(one, other, pictures=[Picture({"stage": "input"}, torch.zeros(3, 2, 2))])
    assert result.select(metric="mse") == [one, other]
    assert result.one(stage="decoder") is other
    assert result.values_of("stage") == ["encoder", "decoder", "input"]
    assert result.select(region="object") == []
    assert len(result.shown(stage="input")) == 1
    for labels in ({"metric": "mse"}, {"stage": "prediction"}):
        with pytest.raises(UserError, match="one was expected"):
            result.one(**labels)


def test_values_have_two_dimensions():
    with pytest.raises(ValueError, match=r"\(seeds, images\)"):
        result_of(Measurement({}, torch.ones(3))).to_json()


# ---- subjects


class Counting:
    """Counts the passes of a forward model."""

    def __init__(self, model: StagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes = 0
        whole = model.run

        def run(*args: Any, **kwargs: Any) -> Any:
            self.passes += 1
            return whole(*args, **kwargs)

        monkeypatch.setattr(model, "run", run)


def test_passes_and_reconstructions_are_computed_once(vit: StagedModel, monkeypatch: pytest.MonkeyPatch):
    subject = untrained_subject(vit)
    counting = Counting(vit, monkeypatch)
    for _ in range(2):
        for batch in subject.batches:
            images = subject.reconstruct(batch, "encoder")
            assert images is subject.reconstruct(batch, "encoder")
            assert images.shape == (2, len(batch.ids), 3, *vit.pixels.size)
            assert (
                subject.reconstruct(batch, "encoder", "backbone").shape[2:]
                == subject.trace(batch)["backbone"].shape[1:]
            )
    assert counting.passes == len(subject.batches) == 2


def test_a_small_cache_forgets_the_oldest_and_stays_right(vit: StagedModel, monkeypatch: pytest.MonkeyPatch):
    subject = untrained_subject(vit, cache=1)
    counting = Counting(vit, monkeypatch)
    kept = [subject.reconstruct(batch, "encoder") for batch in subject.batches]
    again = [subject.reconstruct(batch, "encoder") for batch in subject.batches]
    assert all(map(torch.equal, kept, again))
    assert counting.passes == 4
    assert len(subject._cache.values) == 1


@pytest.mark.parametrize("num_kept", [0.5, 1.5, 2.5])
def test_images_that_do_not_all_fit_into_memory_are_read_again(num_kept: float, monkeypatch: pytest.MonkeyPatch):
    height, width = build_small("vit").pixels.size
    monkeypatch.setattr(subject_module, "KEPT_BYTES", int(num_kept * 3 * 4 * height * width))
    subject = random_subject("vit", num_images=5, batch_size=1)
    for _ in range(3):
        assert [each for batch in subject.batches for each in batch.ids] == subject.ids
    pairs = zip(subject.batches, subject.batches, strict=True)  # two at once do not come in each other's way
    assert all(one.ids == other.ids == (name,) for (one, other), name in zip(pairs, subject.ids, strict=True))


def test_reconstructions_with_other_options_are_cached_apart(small_model: Models):
    subject = untrained_subject(small_model("vit"), 1)
    batch = subject.batches[0]
    own, borrowed = subject.reconstruct(batch, "encoder"), subject.reconstruct(batch, "encoder", reads="backbone")
    assert not torch.equal(own, borrowed)
    assert own.min() >= 0
    assert own.max() <= 1
    assert not own.requires_grad


def test_values_are_joined_in_the_order_of_the_images(vit: StagedModel):
    data = Pictures(vit.pixels.size, 7, unreadable=[2])
    subject = untrained_subject(vit, 1, data=data)
    assert [name for batch in subject.batches for name in batch.ids] == [f"square {n}" for n in (0, 1, 3, 4, 5, 6)]
    assert subject.num_images == 6
    means = subject.collect(lambda batch: batch.images.mean((1, 2, 3)))
    readable = data.floats[[0, 1, 3, 4, 5, 6]]
    assert torch.allclose(means, readable.mean((1, 2, 3)).double()[None], atol=1e-6)
    assert subject.collect(lambda batch: torch.ones(3, len(batch.ids))).shape == (3, 6)
    assert torch.allclose(subject.mean_image, readable.mean(0), atol=1e-6)


def test_the_card_names_the_model_its_data_and_the_seeds(small_model: Models):
    model = small_model("detr")
    card = untrained_subject(model).card()
    assert json.loads(json.dumps(card)) == card
    assert card["stages"] == model.stages
    assert (card["random"], card["task"], card["num_images"], card["seeds"]) == (True, "detect", 6, [0, 1])
    assert (card["data"], card["data_fingerprint"], card["size"]) == ("squares", "ab12", list(model.pixels.size))


def test_fewer_images(small_model: Models):
    subject = untrained_subject(small_model("vit"), 1, num_images=5)
    assert subject.num_images == 5
    fewer = Subject(subject.model, subject.ensemble, subject.data, num_images=2, mean_image=subject.baseline)
    assert fewer.num_images == 2
    assert torch.equal(fewer.mean_image, subject.mean_image)
    assert_rounding(against(fewer), against(subject)[:2])
    assert untrained_subject(small_model("vit"), 1, num_images=100).num_images == 6


def test_chains_of_another_model_and_no_images_are_refused(small_model: Models):
    detr, vit = small_model("detr"), small_model("vit")
    with pytest.raises(UserError, match="this chain inverts small detr"):
        subject_of(vit, [untrained_chain(detr)])
    data = Pictures(vit.pixels.size, 2, unreadable=[0, 1])
    with pytest.raises(UserError, match="squares has no image that can be read"):
        Subject(vit, ChainEnsemble([untrained_chain(vit)]), data)


def test_the_mean_image_of_a_run(tmp_path: Path):
    assert mean_image_of(tmp_path) is None
    image = torch.rand(3, 4, 5)
    save_file({"mean_image": image}, tmp_path / "mean_image.safetensors")
    found = mean_image_of(tmp_path)
    assert torch.equal(found, image)
    save_file({"mean_image": image.half()}, tmp_path / "mean_image.safetensors")
    found = mean_image_of(tmp_path)
    assert found.dtype == torch.float32
    assert torch.equal(found, image.half().float())


def against(subject: Subject) -> torch.Tensor:
    return torch.cat([subject.baseline.against(batch) for batch in subject.batches])


def test_the_mean_of_the_images_themselves_is_held_against_them_without_bias(vit: StagedModel):
    subject = untrained_subject(vit, 1)
    images = torch.cat([batch.images for batch in subject.batches])
    error = (against(subject) - images).double().square().mean(0)
    assert torch.allclose(error, images.double().var(0, correction=1), atol=1e-6)
    others = torch.stack([torch.cat([images[:index], images[index + 1 :]]).mean(0) for index in range(len(images))])
    beyond = (against(subject) - images).abs() - (others - images).abs()  # that of the mean of all others is too high
    assert beyond.max() <= 1e-6
    given = untrained_subject(vit, 1, mean_image=torch.full_like(images[0], 0.25))
    assert given.baseline.counts is None
    assert against(given).unique().tolist() == [0.25]
    assert against(untrained_subject(vit, 1, num_images=1)).isnan().all()


def test_on_average_it_is_the_error_of_the_true_mean():
    """One pixel of a known law: 16 images at a time are held against their own mean, as if it were the true one."""
    colours = torch.rand(4000, 16, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    batches = [Batch(each, ("",) * 16, (Target(),) * 16) for each in colours]
    errors = torch.stack([(MeanImage.over([each]).against(each) - each.images).square().mean() for each in batches])
    assert float(errors.mean()) == pytest.approx(1 / 12, rel=0.005)  # the variance of a uniform law


def test_of_padded_images_only_the_pictures_are_held_against():
    images = torch.rand(3, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    valid = torch.zeros(3, 4, 6, dtype=torch.bool)
    valid[0, :2], valid[1, :, :3], valid[2, :2, :3] = True, True, True
    batch = Batch(images, ("a", "b", "c"), (Target(),) * 3, valid)
    baseline = MeanImage.over([batch.part(0, 1), batch.part(1, 3)])
    found = (baseline.against(batch) - images).square()
    assert torch.allclose(found[..., :2, :3].mean(0), images[..., :2, :3].var(0, correction=1), atol=1e-6)
    alone = baseline.against(batch)[1, :, 2:, :3]  # the colour of the mean image: no other picture reaches there
    assert torch.allclose(alone, baseline.image.mean((1, 2))[:, None, None].expand_as(alone))


# ---- experiments


@pytest.mark.parametrize(
    ("need", "words"), [("masks", "instance masks"), ("boxes", "boxes of objects"), ("labels", "class of the whole")]
)
def test_data_that_lacks_something_is_refused_before_anything_is_measured(
    small_model: Models, tmp_path: Path, need: str, words: str
):
    def measure(subject: Any) -> Result:
        raise AssertionError("nothing should be measured")

    experiment = Experiment("needy", "What?", measure, lambda result: error_bars({}), needs=(need,))
    subject = untrained_subject(small_model("vit"), 1)
    with pytest.raises(UserError, match=f"needy: squares has no {words}"):
        run_experiment(experiment, [subject], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_kind_is_refused(small_model: Models, tmp_path: Path):
    experiment = Experiment(
        "detecting", "What?", lambda subject: result_of(), lambda r: error_bars({}), (), ("detect",)
    )
    subject = untrained_subject(small_model("vit"), 1)
    with pytest.raises(UserError, match="detecting is for models that detect, small vit does not"):
        run_experiment(experiment, [subject], tmp_path)
    model = small_model("detr")
    images = Pictures(model.pixels.size).floats
    assert experiment.fits(subject_of(model, [perfect_chain(model, images)])) == ""


# ---- controls


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

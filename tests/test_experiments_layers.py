"""Layers read by inverses of other layers, and how alike layers are: known answers, and the contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backsight.core import UserError
from backsight.data import Batch
from backsight.engine import StagedModel
from backsight.experiments import intermediate_layers, layer_similarity
from backsight.experiments.layer_similarity import FEATURES, RECONSTRUCTIONS, table_of
from backsight.experiments.subject import distinct_names
from backsight.metrics import cka, mse
from known_chains import (
    Pictures,
    check_contract,
    check_figure,
    constant_chain,
    perfect_subject,
    subject_of,
    untrained_subject,
)

Models = Callable[[str], StagedModel]


def expected_readings(family: str) -> set[tuple[str, str]]:
    """(layer, read as) of the small models."""
    if family == "vit":
        layers = ["backbone", "encoder.0", "encoder.1", "encoder"]
        return {(layer, reads) for layer in layers for reads in ("backbone", "encoder")}
    layers = ["backbone", "encoder.0", "encoder"]
    decoder = {(layer, "decoder") for layer in ("decoder.0", "decoder.1", "decoder", "blank")}
    return {(layer, reads) for layer in layers for reads in ("backbone", "encoder")} | decoder


@pytest.mark.parametrize("family", ["detr", "vit"])
def test_layers_are_read_as_their_own_stage_and_the_one_before(small_model: Models, family: str):
    found = intermediate_layers.readings(untrained_subject(small_model(family), seeds=1))
    assert {(each.layer, each.reads) for each in found} == expected_readings(family)


def test_layers_of_another_layout_are_left_out(small_model: Models):
    model = small_model("swin")  # the second stage halves the grid, the first keeps that of the backbone
    subject = untrained_subject(model, seeds=1)
    for layer, read_as in {(each.layer, each.reads) for each in intermediate_layers.readings(subject)}:
        assert model.layout(layer) == model.layout(read_as)
    read = {each.layer: each.reads for each in intermediate_layers.readings(subject)}
    assert read["stage2.0"] == "stage2"
    assert ("stage2.0", "stage1") not in {(e.layer, e.reads) for e in intermediate_layers.readings(subject)}


def test_the_last_layer_goes_by_the_name_of_its_stage_only_where_it_is_the_same(small_model: Models):
    detr = untrained_subject(small_model("detr"), seeds=1)
    assert distinct_names(detr) == [
        "backbone", "encoder.0", "encoder", "decoder.0", "decoder.1", "decoder", "prediction"
    ]  # fmt: skip  # the decoder ends in a norm, the encoder does not


def test_a_perfect_inverse_reads_its_own_layer_without_error(small_model: Models):
    result = intermediate_layers.measure(perfect_subject(small_model("detr")))
    errors = {(m.labels["layer"], m.labels["reads"]): m for m in result.measurements}
    for stage in ("backbone", "encoder", "decoder"):
        if (stage, stage) in errors:
            assert errors[stage, stage].values.max() < 1e-9
    assert errors["backbone", "backbone"].values.shape == (2, 6)


def test_a_reading_is_the_chain_from_the_stage_that_it_says(small_model: Models):
    subject = untrained_subject(small_model("vit"))
    result = intermediate_layers.measure(subject, num_pictures=1)
    images, trace = torch.cat([batch.images for batch in subject.batches]), None
    trace = subject.model.run(images)
    for layer, reads in [("encoder.0", "backbone"), ("encoder.0", "encoder"), ("encoder", "backbone")]:
        by_hand = []
        for chain in subject.ensemble.chains:
            features = trace[layer]
            for entry in {"backbone": ["backbone"], "encoder": ["encoder", "backbone"]}[reads]:
                features = chain.inverses[entry](features)
            by_hand.append(mse(features.clamp(0, 1), images))
        found = result.one(layer=layer, reads=reads)
        assert torch.allclose(found.values, torch.stack(by_hand), rtol=1e-4)
    shown = result.shown(layer="encoder.0", reads="backbone")
    assert [each.labels["image"] for each in shown] == ["square 0"]


def test_layers_of_a_decoder_are_read_through_its_final_norm(small_model: Models):
    """So does DETR, which reads its prediction off each of them in this way."""
    model = small_model("detr")
    subject = untrained_subject(model, seeds=1)
    norm = intermediate_layers.final_norm(subject, "decoder")
    assert norm is model.module.model.decoder.layernorm
    assert intermediate_layers.final_norm(subject, "encoder") is None
    result = intermediate_layers.measure(subject, num_pictures=0)
    chain = subject.ensemble.chains[0]
    for layer, stands in (("decoder.0", True), ("decoder.1", True), ("blank", False)):
        errors = []
        for batch in subject.batches:
            trace = subject.trace(batch)
            with torch.no_grad():
                features = norm(trace[layer] if stands else torch.zeros_like(trace["decoder"]))
                images = chain.reconstruct(features, "decoder").clamp(0, 1)
            errors.append(mse(images, batch.images))
        found = result.one(layer=layer, reads="decoder").values[0]
        assert torch.allclose(found, torch.cat(errors), rtol=1e-4)
    last, stage = (result.one(layer=layer, reads="decoder").values for layer in ("decoder.1", "decoder"))
    assert torch.allclose(last, stage, rtol=1e-4)  # the stage is the last layer after the norm


def test_a_model_without_layers_is_refused(small_model: Models):
    model = small_model("vit")
    subject = subject_of(model, [constant_chain(model, torch.zeros(3, *model.pixels.size))])
    chain = subject.ensemble.chains[0]
    del chain.plans["encoder"], chain.inverses["encoder"]
    with pytest.raises(UserError, match="has layers that an inverse reads"):
        intermediate_layers.measure(subject)


@pytest.mark.parametrize("name", ["intermediate_layers", "layer_similarity"])
def test_contract(small_model: Models, tmp_path: Path, name: str):
    subjects = [untrained_subject(small_model("detr")), untrained_subject(small_model("vit"), 1)]
    check_contract(name, subjects, tmp_path, **({"num_pictures": 1} if name == "intermediate_layers" else {}))


# ---- similarity


def test_the_similarity_of_layers_is_that_of_their_features(small_model: Models):
    subject = untrained_subject(small_model("vit"))
    result = layer_similarity.measure(subject)
    batch = subject.batches[0]
    trace = subject.trace(batch)
    found = result.one(of=FEATURES, metric="cka", layer="image", other="encoder")
    assert found.values.shape == (1, 1)
    assert found.mean() == pytest.approx(cka(batch.images, trace["encoder"]))
    painted = result.one(of=RECONSTRUCTIONS, metric="cka", layer="backbone", other="encoder.0")
    assert painted.values.shape == (2, 1)
    for seed in (0, 1):
        one, other = (subject.reconstruct(batch, name)[seed] for name in ("backbone", "encoder.0"))
        assert painted.values[seed, 0].item() == pytest.approx(cka(one, other))
    assert any("2 images are left out of CKA" in note for note in result.notes)
    related = result.one(of=FEATURES, metric="correlation", layer="backbone", other="encoder")
    assert related.values.shape == (1, 6)
    assert torch.allclose(related.values[0, :4], correlation_by_hand(batch, trace["backbone"], trace["encoder"]))


def correlation_by_hand(batch: Batch, one: Tensor, other: Tensor) -> Tensor:
    pairs = zip((one - one.mean(0)).double(), (other - other.mean(0)).double(), strict=True)
    return torch.stack([torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in pairs]).to(
        batch.images.device
    )


def test_the_reconstructions_of_a_perfect_chain_are_like_the_image(small_model: Models):
    subject = perfect_subject(small_model("detr"))
    result = layer_similarity.measure(subject)
    for stage in subject.stages:
        for metric in ("cka", "correlation"):
            assert result.one(of=RECONSTRUCTIONS, metric=metric, layer="image", other=stage).mean() == pytest.approx(1)
    assert not result.select(of=FEATURES, metric="correlation", layer="encoder", other="decoder")  # other layouts
    names, table = table_of(result, subject.name, FEATURES, "cka")
    assert names == ["image", *distinct_names(subject)]
    assert torch.equal(table, table.T)
    assert torch.equal(table.diagonal(), torch.ones(len(names), dtype=torch.float64))


def test_what_does_not_depend_on_the_image_has_no_similarity(small_model: Models):
    model = small_model("vit")
    subject = subject_of(model, [constant_chain(model, torch.full((3, *model.pixels.size), 0.5))])
    result = layer_similarity.measure(subject)
    check_figure(*layer_similarity.draw(result))
    for metric in ("cka", "correlation"):
        assert result.one(of=RECONSTRUCTIONS, metric=metric, layer="image", other="encoder").values.isnan().all()
        names, table = table_of(result, subject.name, RECONSTRUCTIONS, metric)
        assert table.isnan().sum() == len(names) * (len(names) - 1)


def test_too_few_images_are_refused(vit: StagedModel):
    subject = untrained_subject(vit, seeds=1, data=Pictures(vit.pixels.size, 3))
    with pytest.raises(UserError, match="needs 4 images in a batch at least, small vit has 3"):
        layer_similarity.measure(subject)

"""Training the zoo's forward models: two steps of each recipe, and the folders they leave."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from backsight.core import UserError
from backsight.data import loader
from backsight.data.base import Batch
from backsight.data.world import World
from backsight.shipped import ZOO, shipped_card
from backsight.tasks import as_label
from recipes import chains
from recipes.chains import train_chains
from recipes.classifier import ClassifierLearner, _mix
from recipes.detector import PIXELS, DetectorLearner
from recipes.evaluate import detect, load_forward
from recipes.photos import Photos
from recipes.recipe import CHAINS, RECIPES, SIZE, find_recipe
from recipes.spread import compare, compare_chains, in_words
from recipes.train import rate, train_forward


@pytest.fixture(scope="module")
def batch() -> Batch:
    return World("prior").batch(range(8))


@pytest.mark.parametrize("name", ["detr-independent", "vit-defining"])
def test_two_steps_leave_a_folder_that_its_library_loads(name, tmp_path):
    if find_recipe(name).muon and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    lines: list[str] = []
    card = train_forward(f"zoo/{name}", tmp_path, steps=2, test=8, log=lines.append)
    assert json.loads(json.dumps(card)) == json.loads((tmp_path / "card.json").read_text())
    assert card["name"] == name
    assert card["command"] == f"python -m recipes {name}"
    assert card["figures"]["images"] == 8
    assert card["steps"] == 2
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 6_000_000
    model = load_forward(tmp_path, find_recipe(name))
    shipped = [
        *model.parameters(),
        *(buffer for path, buffer in model.named_buffers() if path.endswith(("weight", "bias"))),
    ]
    assert sum(weights.numel() for weights in shipped) == card["parameters"]  # frozen normalisation keeps buffers
    assert any(line.startswith("step 0 loss") for line in lines)


@pytest.fixture
def cells(tmp_path):
    """Four photographs, as VOC has them, of a white rectangle each, and where it is."""
    folder = tmp_path / "cells"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    names = ["a", "b", "c", "d"]
    for part, chosen in (("train", names[:3]), ("val", names[3:])):
        (folder / "ImageSets/Main" / f"{part}.txt").write_text("\n".join(chosen))
    for index, name in enumerate(names):
        picture = Image.new("RGB", (256, 192))
        x, y = 40 + 30 * index, 60
        picture.paste((255, 255, 255), (x, y, x + 50, y + 40))
        picture.save(folder / "JPEGImages" / f"{name}.png")
        box = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + 50}</xmax><ymax>{y + 40}</ymax>"
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><object><name>WBC</name><bndbox>{box}</bndbox></object></annotation>"
        )
    return f"voc:{folder}"


def test_boxes_move_with_the_photographs(cells):
    photos = Photos(replace(RECIPES["detr-blood"], batch_size=12), PIXELS, torch.device("cpu"), cells)
    found = 0
    for image, target in zip((batch := photos.batch(0)).images, batch.targets, strict=True):
        bright = image.mean(0) > 0.5 * float(image.max())
        if len(target.boxes):
            rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
            seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            torch.testing.assert_close(target.boxes[0], seen.float(), atol=1.5, rtol=0)
            found += 1
    assert found > 6
    assert len({tuple(target.boxes.flatten().tolist()) for target in batch.targets}) > 6, "they move"


@pytest.mark.slow
def test_photographs_are_learned_and_inverted(cells, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "detr-blood", replace(RECIPES["detr-blood"], batch_size=2))
    monkeypatch.setitem(CHAINS, "detr-blood", replace(CHAINS["detr-blood"], moved=4, batch_size=2))
    folder = tmp_path / "detr-blood"
    card = train_forward("detr-blood", folder, steps=2, data=cells, log=lambda _: None)
    assert card["data"] == RECIPES["detr-blood"].photos
    assert card["figures"]["images"] == 1
    assert load_forward(folder, RECIPES["detr-blood"]).config.id2label[2] == "WBC"
    card = train_chains("detr-blood", folder, steps=2, data=cells, log=lambda _: None)
    assert (folder / "chains/0/prediction@onehot.safetensors").is_file()
    assert card["test_images"] == 1


def test_images_are_mixed_with_what_lies_behind_in_the_batch():
    torch.manual_seed(0)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    mixed, share = _mix(images)
    assert 0 < share < 1
    assert float((mixed[0] == 3).float().mean()) == pytest.approx(share)
    assert float((mixed[0] == 0).float().mean()) == pytest.approx(1 - share)


def test_a_torch_without_muon_is_told(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(UserError, match=r"needs Muon, which torch .* lacks"):
        train_forward("zoo/vit-defining", tmp_path, steps=2, test=8)


def test_a_training_is_compared_with_the_shipped_model():
    shipped = shipped_card("zoo/vit-prior")
    found = compare("vit-prior", {**shipped["figures"], "accuracy": shipped["figures"]["accuracy"] - 0.2})
    assert [alike for _, _, alike in found.values()] == [False, True]
    assert set(found) == {"accuracy", "typical"}
    assert "outside the spread); typical" in in_words(found)
    chains = shipped["chains"]["relative"]
    assert all(alike for _, _, alike in compare_chains("vit-prior", chains).values())
    worse = {stage: [2 * value for value in values] for stage, values in chains.items()}
    assert not any(alike for _, _, alike in compare_chains("vit-prior", worse).values())


def test_chains_leave_the_mean_of_the_scenes_they_were_trained_on(tmp_path, monkeypatch):
    shipped, folder = ZOO / "vit-defining", tmp_path / "vit-defining"
    shutil.copytree(
        shipped, folder, ignore=shutil.ignore_patterns("chains", "*_image.safetensors", "*_range.safetensors")
    )
    monkeypatch.setitem(CHAINS, "vit-defining", replace(CHAINS["vit-defining"], seeds=1))
    monkeypatch.setattr(chains, "keep_range", partial(chains.keep_range, num=64))
    train_chains("vit-defining", folder, steps=2, test=8, log=lambda _: None)
    assert (folder / "training_range.safetensors").is_file()
    kept = load_file(folder / "mean_image.safetensors")["mean_image"]
    scenes = loader(World("defining", SIZE, single=True), CHAINS["vit-defining"].batch_size, shuffle=True)
    seen = torch.cat([next(scenes).images for _ in range(2)])
    assert kept.dtype == torch.float16
    torch.testing.assert_close(kept.float(), seen.mean(0), atol=1e-3, rtol=0)
    assert (folder / "mean_image.safetensors").stat().st_size < 60_000


@pytest.mark.parametrize("name", ["detr-prior", "deformable-detr-prior"])
def test_the_shipped_detector_is_the_trained_one(name, batch, tmp_path):
    torch.manual_seed(0)
    learner = DetectorLearner(RECIPES[name])
    assert all(weights.requires_grad for weights in learner.model.parameters())
    optimiser = torch.optim.SGD(learner.model.parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        learner.loss(batch).backward()
        optimiser.step()
    assert all(weights.grad is not None for weights in learner.model.parameters())
    learner.save(tmp_path)
    learner.model.eval()
    loaded, pixels = load_forward(tmp_path, RECIPES[name]), PIXELS.normalise(batch.images)
    assert {weights.dtype for weights in loaded.parameters()} == {torch.float32}
    assert not loaded.config.auxiliary_loss
    with torch.no_grad():
        one, other = learner.model(pixels), loaded(pixels)
    torch.testing.assert_close(one.logits, other.logits, atol=0.01, rtol=0.01)
    torch.testing.assert_close(one.pred_boxes, other.pred_boxes, atol=1e-3, rtol=0)


def test_listening_to_the_layers_leaves_the_last_one_as_it_is(batch):
    learner = DetectorLearner(RECIPES["detr-prior"])
    plain = learner.model(PIXELS.normalise(batch.images), labels=[as_label(t, SIZE) for t in batch.targets]).loss
    every = learner.loss(batch)
    assert float(every.detach()) > 2 * float(plain.detach())  # three layers instead of one
    learner.model.config.decoder_layers = 1  # without their weights, the auxiliary losses do not count
    torch.testing.assert_close(learner.loss(batch), plain, atol=1e-3, rtol=1e-3)


def test_detections_are_in_pixels(batch):
    found = detect(DetectorLearner(RECIPES["detr-prior"]).model.eval(), batch.images)
    assert len(found) == 8
    assert found[0]["boxes"].shape == (10, 4)
    assert found[0]["labels"].max() < 8
    assert found[0]["boxes"].max() > 1


def test_a_classifier_learns_its_batch():
    torch.manual_seed(0)
    learner, data = ClassifierLearner(RECIPES["vit-prior"]), World("prior", SIZE, single=True).batch(range(16))
    optimiser = torch.optim.AdamW(learner.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = learner.loss(data)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_the_rate_rises_stays_and_falls():
    recipe = replace(RECIPES["detr-prior"], warmup=10, flat=0.3)
    rates = [rate(recipe, step, step / 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:30] == [1.0] * 20
    assert all(later < earlier for earlier, later in pairwise(rates[31:]))
    assert rates[-1] < 0.01


def test_minutes_end_a_run(tmp_path):
    card = train_forward("vit-prior", tmp_path, steps=10_000, minutes=0.02, test=8, log=lambda _: None)
    assert 1 <= card["steps"] < 100


def test_the_zoo_lists_itself():
    assert {"detr-prior", "vit-independent", "detr-defining", "deformable-detr-prior"} <= set(RECIPES)
    with pytest.raises(UserError, match="it has detr-prior"):
        find_recipe("zoo/yolo")

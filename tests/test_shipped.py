"""What ships with the package: it loads by name, its sites are right, it is as good as its card says, the demo runs."""

from __future__ import annotations

import json
import math
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from backsight.chain import ChainEnsemble
from backsight.core import UserError
from backsight.data import open_data
from backsight.data.world import World
from backsight.data.world.scenes import LAWS, Law
from backsight.demos import SUBJECTS, Subject, demo
from backsight.error_table import error_table
from backsight.experiments.subject import open_subject
from backsight.figures import image_png
from backsight.metrics import mse
from backsight.models import load_model
from backsight.report.reconstruct import reconstruct
from backsight.results import Result
from backsight.shipped import SAMPLED, ZOO, find_shipped, shipped_card, shipped_names
from backsight.verification import verify
from marks import quick
from pictures import real_data
from recipes.evaluate import evaluate_forward, load_forward, measure
from recipes.recipe import find_recipe


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_model_loads_and_its_sites_are_right(name: str) -> None:
    model = load_model(name)
    assert model.weights == name
    assert list(model.pixels.size) == shipped_card(name)["size"]
    assert all(check.passed for check in verify(model))


@pytest.mark.parametrize("name", quick(shipped_names(drawn=True), "zoo/detr-prior", "zoo/vit-independent"))
def test_a_shipped_model_is_as_good_as_its_card_says(name: str) -> None:
    card = json.loads((ZOO / name.removeprefix("zoo/") / "card.json").read_text())
    found = evaluate_forward(name, num=200)
    for figure in ("AP50", "accuracy"):
        if figure in card["figures"]:
            assert found[figure] == pytest.approx(card["figures"][figure], abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "part"), [("vit-cifar10", "parquet", "cifar10"), ("detr-blood", "voc", "bccd")]
)
def test_a_model_of_photographs_is_as_good_as_its_card_says(name: str, kind: str, part: str) -> None:
    recipe = find_recipe(name)
    photos = open_data(f"{kind}:{real_data(part)}", load_model(f"zoo/{name}").pixels).test
    found = measure(load_forward(ZOO / name, recipe), photos)
    for figure, value in shipped_card(f"zoo/{name}")["figures"].items():
        assert found[figure] == pytest.approx(value, abs=0.01)


LEAST = {"AP": 0.70, "AP50": 0.92, "accuracy": 0.85}


def test_the_shipped_models_are_good_at_their_tasks() -> None:
    for name in shipped_names(drawn=True):
        card = shipped_card(name)
        assert card["figures"]["images"] >= 2_000, name
        assert all(card["figures"].get(figure, 1) >= least for figure, least in LEAST.items()), name


@lru_cache
def training_scenes(law: Law, size: tuple[int, int], single: bool) -> torch.Tensor:
    return World(law, size, seed=0, single=single).batch(range(200)).images


WITH_CHAINS = [name for name in shipped_names(drawn=True) if "chains" in shipped_card(name)]


@pytest.mark.parametrize("name", quick(WITH_CHAINS, "zoo/detr-independent", "zoo/vit-prior"))
def test_shipped_chains_bring_the_mean_of_what_they_were_trained_on(name: str) -> None:
    subject = open_subject(name, num_images=1)
    assert subject.baseline.counts is None, "that of the images looked at would stand in"
    assert subject.mean_image.dtype == torch.float32
    assert subject.mean_image.shape == (3, *subject.model.pixels.size)
    law, single = LAWS[LAWS.index(name.rpartition("-")[2])], subject.model.spec.task == "classify"
    scenes = training_scenes(law, subject.model.pixels.size, single)
    apart = (scenes.mean(0) - subject.mean_image).square().mean()
    assert float(apart) < 2 * float(scenes.var(0).mean()) / len(scenes)  # no further than the mean of so few may be


@pytest.mark.slow
def test_the_shipped_mean_image_is_that_which_the_cards_were_made_with() -> None:
    """Its error on the same 2,000 scenes is the card's, but for half precision."""
    for name in shipped_names(drawn=True):
        card = shipped_card(name)
        subject = open_subject(name, num_images=card["chains"]["test_images"], batch_size=100)
        errors = subject.collect(lambda batch, one=subject: mse(one.baseline.against(batch), batch.images))
        assert float(errors.mean()) == pytest.approx(card["chains"]["mse"]["mean image"], rel=1e-5)


def mean_error(result: Result) -> float:
    return result.one(stage="mean image", metric="mse").mean()


def test_pictures_are_held_against_the_training_mean_and_not_against_themselves(tmp_path: Path) -> None:
    pixels = load_model("zoo/vit-prior").pixels
    scenes = World("prior", pixels.size, seed=2, single=True).batch(range(3)).images
    photos = [tmp_path / f"{index}.png" for index in range(len(scenes))]
    for photo, scene in zip(photos, scenes, strict=True):
        photo.write_bytes(image_png(scene))
    found = reconstruct("zoo/vit-prior", photos[:1], tmp_path / "shipped", device="cpu")
    given = open_subject("zoo/vit-prior", num_images=1).mean_image[None]
    assert mean_error(found) == pytest.approx(float(mse(given, scenes[:1])), rel=1e-5)
    alone = shutil.copytree(ZOO / "vit-prior/chains/0", tmp_path / "alone")
    own = reconstruct(alone, photos, tmp_path / "own", device="cpu")
    assert mean_error(own) == pytest.approx(float(scenes.var(0).mean()), rel=1e-5)
    assert "corrected" in own.subjects[0]["mean_image"]
    one = reconstruct(alone, photos[:1], tmp_path / "one", device="cpu")
    assert math.isnan(mean_error(one))


@pytest.mark.parametrize(("option", "value"), [("minutes", -1), ("seeds", 0), ("seed", -1)])
def test_a_demo_that_cannot_be_meant_is_refused_before_anything_is_written(
    option: str, value: int, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^{option} is {value}"):
        demo(tmp_path / "demo", **{"minutes": 0, option: value})
    assert not (tmp_path / "demo").exists()


def test_names_that_are_not_there() -> None:
    assert find_shipped("detr-resnet-50") is None
    with pytest.raises(UserError, match="zoo/detr-prior"):
        find_shipped("zoo/detr-later")


@pytest.mark.parametrize("name", SAMPLED)
def test_shipped_flows_draw_what_leads_to_the_features(name: str) -> None:
    flows = ChainEnsemble.from_pretrained(f"{name}/flows")
    subject = open_subject(name, f"{name}/flows", num_images=2)
    (batch,) = subject.batches
    draws = subject.sample(batch, "encoder", draws=4)[0]
    assert flows.entries == subject.stages
    assert float(draws.var(0).mean()) > 1e-4, "they differ"
    errors = [float((each - batch.images).square().mean()) for each in (draws.mean(0), draws[0])]
    mean_image = float((subject.mean_image - batch.images).square().mean())
    most = 2 if name == "zoo/detr-independent" else 1  # it has dropped the colours
    assert errors[0] < errors[1] < most * mean_image
    with pytest.raises(UserError, match="a checkout has those of zoo/detr-prior, zoo/detr-independent, zoo/vit-prior"):
        ChainEnsemble.from_pretrained("zoo/vit-defining/flows")


def test_together_they_are_small() -> None:
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < 74e6


def shipped_entries(name: str) -> list[str]:
    return ChainEnsemble.from_pretrained(name).entries


@pytest.mark.parametrize(
    "subjects", [pytest.param(SUBJECTS, marks=pytest.mark.slow), SUBJECTS[1:]], ids=["both", "vit"]
)
def test_the_demo_leaves_its_pages(
    subjects: tuple[Subject, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backsight.demos.SUBJECTS", subjects)
    monkeypatch.setattr("backsight.demos.SHOWN", 3)
    monkeypatch.setattr("backsight.demos.MEASURED", 12)
    monkeypatch.setattr("backsight.inverses.ridge.IMAGES", 48)
    pages = demo(tmp_path, minutes=0.02, seeds=1)
    assert pages == [tmp_path / subject.page / "report.html" for subject in subjects]
    for page, subject in zip(pages, subjects, strict=True):
        results = Result.load(page.parent)
        found = results.subjects[0]
        assert (found["model"], found["random"]) == (subject.model, False)
        card = shipped_card(subject.model)["figures"]
        assert found["figures"] == card
        assert len(results.shown(stage="input")) == 3
        run = tmp_path / "runs" / subject.model.removeprefix("zoo/")
        entries = [row.stage for row in error_table(results)[1][:-1]]
        assert ChainEnsemble.from_pretrained(run).entries == entries
        shipped = Result.load(tmp_path / "shipped" / subject.page)
        assert [row.stage for row in error_table(shipped)[1][:-1]] == shipped_entries(subject.model)
        assert len(shipped.shown(stage="input")) == 3
    with pytest.raises(UserError, match="is a file"):
        demo(pages[0].parent / "results.json")

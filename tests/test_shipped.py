"""What ships with the package: it loads by name, its sites are right, it is as good as its card says, the demo runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backsight.catalogue import list_zoo
from backsight.chain import ChainEnsemble
from backsight.core import UserError
from backsight.demo import SUBJECTS, demo
from backsight.models import load_model
from backsight.report import Results
from backsight.shipped import ZOO, find_shipped, shipped_names
from backsight.verify import verify
from backsight.zoo.evaluate import evaluate_forward


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_model_loads_and_its_sites_are_right(name: str) -> None:
    model = load_model(name)
    assert model.weights == name
    assert model.pixels.size == (96, 96)
    assert all(check.passed for check in verify(model))


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_model_is_as_good_as_its_card_says(name: str) -> None:
    card = json.loads((ZOO / name.removeprefix("zoo/") / "card.json").read_text())
    found = evaluate_forward(name, num=200)
    for figure in ("AP50", "accuracy"):
        if figure in card["figures"]:
            assert found[figure] == pytest.approx(card["figures"][figure], abs=0.06)


LEAST = {"AP": 0.70, "AP50": 0.92, "accuracy": 0.85}


def test_the_shipped_models_are_good_at_their_tasks() -> None:
    for name, card in list_zoo().items():
        assert card["figures"]["images"] >= 2_000, name
        assert all(card["figures"].get(figure, 1) >= least for figure, least in LEAST.items()), name


def test_the_zoo_lists_its_cards() -> None:
    assert [f"zoo/{name}" for name in list_zoo()] == shipped_names()
    assert all(card["summary"] for card in list_zoo().values())


def test_names_that_are_not_there() -> None:
    assert find_shipped("detr-resnet-50") is None
    with pytest.raises(UserError, match="zoo/detr-prior"):
        find_shipped("zoo/detr-later")


def test_together_they_are_small() -> None:
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < 40e6


def test_the_demo_leaves_its_pages(tmp_path: Path) -> None:
    pages = demo(tmp_path, minutes=0.1, seeds=1)
    assert pages == [tmp_path / "report.html", tmp_path / "vit" / "report.html"]
    for page, subject in zip(pages, SUBJECTS, strict=True):
        results = Results.load(page.parent)
        assert results.model.name == subject.model
        assert not results.model.random
        card = list_zoo()[subject.model.removeprefix("zoo/")]["figures"]
        assert results.model.figures == {name: value for name, value in card.items() if name != "images"}
        assert len(results.pictures) == 12
        run = tmp_path / "runs" / subject.model.removeprefix("zoo/")
        assert ChainEnsemble.from_pretrained(run).entries == [stage.entry for stage in results.stages]
    with pytest.raises(UserError, match="is a file"):
        demo(tmp_path / "results.json")

"""Objects show themselves in a notebook: shapes, pictures, numbers, and what warns of them."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import backsight as bs
from backsight.display import Html, Table
from backsight.experiments import EXPERIMENTS
from backsight.experiments.claims import Claims, Judgement
from backsight.results import LAYER_ERROR, Measurement, Result
from test_training_range import photo_like

MODEL = "zoo/vit-prior"


@pytest.fixture(scope="module")
def model() -> bs.StagedModel:
    return bs.load_model(MODEL)


@pytest.fixture(scope="module")
def chains() -> bs.ChainEnsemble:
    return bs.ChainEnsemble.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def scenes(model: bs.StagedModel) -> torch.Tensor:
    return bs.open_data("world:prior:single", model.pixels).test.batch(range(2)).images


def html(shown: Any) -> str:
    return shown._repr_html_()


def test_a_model_shows_its_stages_and_their_shapes(model: bs.StagedModel) -> None:
    page = html(model)
    layout = model.layout("encoder")
    assert f"{layout.tokens} × {layout.width}" in page
    assert all(stage in page for stage in model.stages)


def test_a_trace_shows_its_features(model: bs.StagedModel, scenes: torch.Tensor) -> None:
    assert "2 × 3 × 96 × 96" in html(model.run(scenes))
    assert "left early" in html(model.run(scenes, until="backbone"))


def test_a_chain_shows_its_inverses(chains: bs.ChainEnsemble) -> None:
    page = html(chains)
    assert "seeds: 0, 1, 2" in page
    assert "world:prior:single" in page
    assert "seeds: 0 ·" in html(chains.chains[0])
    assert "says little" in html(bs.ChainEnsemble.from_pretrained("zoo/detr-independent"))


def test_a_chain_shows_what_it_makes_of_a_trace(
    model: bs.StagedModel, chains: bs.ChainEnsemble, scenes: torch.Tensor
) -> None:
    shown = chains.show(model.run(scenes))
    assert isinstance(shown, Html)
    assert html(shown).count("<img") == 2 * 3
    assert "Unlike" not in html(shown)
    assert html(chains.chains[0].show(model.run(scenes), at=["encoder.1"])).count("<img") == 2 * 2
    assert "notebook" in repr(shown)


def test_a_chain_warns_of_images_that_are_unlike_its_data(model: bs.StagedModel, chains: bs.ChainEnsemble) -> None:
    assert "Unlike what the inverses were trained on" in html(bs.show(chains, model.run(photo_like(1))))


def test_a_result_shows_its_numbers_and_its_figure(model: bs.StagedModel) -> None:
    subject = bs.Subject(model, MODEL, "world:prior:single", num_images=4)
    result = EXPERIMENTS["stage_error"].measure(subject)
    page = html(result)
    assert EXPERIMENTS["stage_error"].question in page
    assert page.count("<img") >= 1
    assert "95 % interval" in page


def test_the_errors_of_a_run_are_shown_by_stage() -> None:
    labels = {"model": "m", "stage": "encoder"}
    errors = [Measurement({**labels, "metric": name}, torch.tensor([[0.25, 0.75]])) for name in ("mse", LAYER_ERROR)]
    assert "encoder" in html(Result("evaluation", [{"model": "m", "data": "d", "num_images": 2}], errors))


def test_claims_show_their_verdicts() -> None:
    claim = Judgement("id", "colour <survives>", "paper", "x", "unit", "more", 0.0, (0.0, None), "holds")
    page = html(Claims([claim]))
    assert "holds" in page
    assert "colour &lt;survives&gt;" in page


def test_a_long_table_is_cut_and_says_so() -> None:
    assert "and 5 more" in Table("t", ["a"], [["x"]] * 35).html()


def test_exploring_needs_a_library_and_says_which(
    model: bs.StagedModel, chains: bs.ChainEnsemble, scenes: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(bs.UserError, match="ipywidgets"):
        bs.explore(model, chains, scenes[0])


class Widget(SimpleNamespace):
    """Stands in for a widget: its fields, and who watches it."""

    def observe(self, follow: Any, names: str) -> None:
        self.follow = follow


def test_a_slider_leads_through_the_layers(
    model: bs.StagedModel, chains: bs.ChainEnsemble, scenes: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = SimpleNamespace(
        SelectionSlider=Widget, HTML=lambda value: Widget(value=value), VBox=lambda children: children
    )
    monkeypatch.setitem(sys.modules, "ipywidgets", stand_in)
    answer, slider, shown = bs.explore(model, chains, scenes[0])
    assert "says" in answer.value
    assert slider.options == [name for name in model.names if name in slider.options]
    assert {"backbone", "encoder.0", "encoder"} <= set(slider.options)
    before = shown.value
    slider.follow({"new": "backbone"})
    assert shown.value != before

"""The trade-off between reconstruction and task, read from the folders of finished runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.legend import Legend
from matplotlib.text import Annotation

from backsight.core import UserError
from backsight.experiments.trade_off import FinishedRun, compare_runs, draw
from backsight.io import write_json, write_text
from backsight.training import RunFolder
from known_chains import check_contract

DETR, VIT = ("backbone", "encoder", "decoder", "prediction", "prediction@onehot"), ("backbone", "encoder")


def finished(folder: Path, error: float = 0.02, entries: tuple[str, ...] = DETR, **config: Any) -> Path:
    """A run as training leaves it; the error at the entry with the number k is ``(k + 1) * error`` for seed 0."""
    task_metrics = config.pop("task_metrics", None)
    model = {"name": "detr" if "decoder" in entries else "vit", "weights": config.pop("weights", "zoo/detr")}
    RunFolder(folder).write_config({"model": model, "seeds": [0, 1], **config})
    found = {name: {"mse": [(k + 1) * error, (k + 1) * error + 0.001]} for k, name in enumerate(entries)}
    evaluation = {
        "num_images": 100,
        "seeds": [0, 1],
        "value_range": "RGB in [0, 1]",
        "entries": found,
        "card": {"data": "coco:photos", "data_fingerprint": "ab12"},
    }
    if task_metrics is not None:
        evaluation["task_metrics"] = task_metrics
    write_json(folder / "evaluation.json", evaluation)
    write_text(folder / "card.md", "done")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    root = tmp_path / "runs"
    return [
        finished(root / "modular", 0.03, task_metrics={"AP": [0.42]}, task="modular"),
        finished(root / "classic", 0.02, task_metrics={"AP": [0.42, 0.42]}, task="classic"),
        *(
            finished(
                root / f"joint{w:g}", 0.02 - w / 100, task_metrics={"AP": [0.43 - w / 10]}, task="joint", trade_off=w
            )
            for w in (0.0, 0.1, 0.9)
        ),
        finished(root / "vit", 0.001, VIT),
    ]


def test_what_is_read(runs: list[Path]):
    result = compare_runs(runs)
    errors = result.select(model="detr", metric="mse")
    assert [each.labels["task"] for each in errors] == ["modular", "classic", "joint", "joint", "joint"]
    assert {each.labels["stage"] for each in errors} == {"decoder"}
    assert [each.labels.get("trade_off") for each in errors] == [None, None, 0.0, 0.1, 0.9]
    assert errors[0].values.tolist() == [[pytest.approx(0.09)], [pytest.approx(0.091)]]
    assert result.one(run="joint0.1", metric="AP").values.tolist() == [[pytest.approx(0.42)]]
    assert result.one(model="vit", metric="mse").labels["stage"] == "encoder"
    assert result.one(model="vit", metric="mse").labels["task"] == "modular"  # a run that does not say
    assert [card["run"] for card in result.subjects] == [str(path) for path in runs]
    assert any("no performance at the task is known of vit" in note for note in result.notes)


def test_another_stage_can_be_asked_for(runs: list[Path]):
    result = compare_runs(runs[:2], stage="prediction@onehot")
    assert result.one(run="classic", metric="mse").values[0, 0] == pytest.approx(0.1)
    with pytest.raises(UserError, match=r"do not all have 'decoder\.1': they share backbone, encoder, decoder"):
        compare_runs(runs[:2], stage="decoder.1")


def test_runs_of_one_name_are_told_apart(tmp_path: Path):
    paths = [finished(tmp_path / part / "run") for part in ("a", "b")]
    result = compare_runs(paths)
    assert result.values_of("run") == [str(path) for path in paths]


def test_runs_say_how_they_were_updated_and_those_of_one_kind_are_noted(tmp_path: Path):
    joint = [("chain", 0.1), ("sum", 0.1), ("sum", 0.9), (None, 0.9)]  # None: as runs of earlier versions
    paths = [
        finished(tmp_path / f"{update} {w}", task="joint", trade_off=w, update=update, task_metrics={"AP": [0.4]})
        for update, w in joint
    ]
    result = compare_runs(paths)
    errors = result.select(metric="mse")
    assert [each.labels["update"] for each in errors] == ["chain", "sum", "sum", "chain"]
    assert not any("cannot tell" in note for note in result.notes)
    (figure,) = draw(result)
    shown = [text.get_text() for legend in figure.findobj(Legend) for text in legend.get_texts()]
    assert {"joint, chain", "joint, sum"} <= set(shown)
    twice = compare_runs([*paths[:1], finished(tmp_path / "again", task="joint", trade_off=0.1, update="chain")])
    assert any("chain 0.1 and again are all joint runs with lambda 0.1" in note for note in twice.notes)
    modular = [finished(tmp_path / name, update=None) for name in ("one", "other")]
    assert "update" not in compare_runs(modular).measurements[0].labels
    assert any("one and other are all modular runs of detr" in note for note in compare_runs(modular).notes)


def test_runs_on_other_images_are_noted(tmp_path: Path):
    paths = [finished(tmp_path / part) for part in ("a", "b")]
    evaluation = (paths[1] / "evaluation.json").read_text()
    write_text(paths[1] / "evaluation.json", evaluation.replace("ab12", "cd34"))
    assert any("not measured on the same images" in note for note in compare_runs(paths).notes)


def test_mistakes_are_refused_in_one_line(tmp_path: Path, runs: list[Path]):
    with pytest.raises(UserError, match="give their folders as runs"):
        compare_runs()
    with pytest.raises(UserError, match=r"no run in .*nowhere"):
        compare_runs(tmp_path / "nowhere")
    (runs[0] / "card.md").unlink()
    with pytest.raises(UserError, match="has not finished"):
        compare_runs(runs)
    other = finished(tmp_path / "other", task="alchemy")
    with pytest.raises(UserError, match="of the task 'alchemy': known are modular, classic, joint"):
        FinishedRun.read(other)
    for content in ("{", "[]", '{"seeds": [0], "entries": {"encoder": {"mse": ["x"]}}}', '{"seeds": [0]}'):
        write_text(runs[1] / "evaluation.json", content)
        with pytest.raises(UserError, match="cannot be read"):
            FinishedRun.read(runs[1])


def test_the_figure_names_every_point(runs: list[Path], tmp_path: Path):
    result = check_contract("trade_off", [], tmp_path / "out", runs=runs)
    (figure,) = draw(result)
    texts = [each.get_text() for each in figure.findobj(Annotation)]
    assert sorted(texts) == ["classic", "modular", "modular (task not measured)", "λ = 0", "λ = 0.1", "λ = 0.9"]
    left, right = figure.axes
    assert left.get_xlabel() == "AP"
    assert "not known" in right.get_xlabel()
    place = next(each for each in left.findobj(Annotation) if each.get_text() == "λ = 0.1").xy
    assert place == pytest.approx((0.42, 3 * 0.019 + 0.0005))
    assert math.isfinite(left.get_ylim()[1])


def test_the_colours_of_the_images_are_no_performance(tmp_path: Path):
    run = finished(tmp_path / "run", task_metrics={"AP": [0.5, 0.6]})
    evaluation = json.loads((run / "evaluation.json").read_text())
    for found in evaluation["entries"].values():
        found["saturation"] = [0.1, 0.2]
    write_json(run / "evaluation.json", evaluation)
    result = compare_runs([run])
    assert result.one(metric="saturation").values.tolist() == [[0.1], [0.2]]
    assert [axes.get_xlabel() for axes in draw(result)[0].axes] == ["AP"]


def test_random_weights_are_said(tmp_path: Path):
    result = compare_runs([finished(tmp_path / "run", weights="random")])
    assert "random weights" in draw(result)[0].axes[0].get_title(loc="left")

"""The table of what was measured, its files, and those of the first version."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backsight.core import UserError
from backsight.results import Measurement, Picture, Result


def result_of(*measurements, **fields):
    return Result("an experiment", [{"model": "m"}], measurements, **fields)


OLD = [{"labels": {"metric": "top-1"}, "values": [[1.0, None]]}]


def test_a_result_of_the_first_version_opens(tmp_path: Path):
    content = {"format": "backsight.experiment/1", "experiment": "e", "command": "c", "settings": {"level": 1}}
    content |= {"notes": ["n"], "subjects": [{"model": "m"}], "measurements": OLD, "pictures": []}
    (tmp_path / "result.json").write_text(json.dumps(content))
    found = Result.load(tmp_path)
    assert (found.experiment, found.command, found.settings, found.notes) == ("e", "c", {"level": 1}, ["n"])
    assert found.one(metric="accuracy").mean() == 1
    assert Result.from_json(found.to_json()).to_json() == found.to_json()


def test_the_frame_has_a_row_for_each_value():
    labels = {"model": "m", "stage": "encoder", "metric": "mse"}
    result = Result(
        "an experiment",
        [{"model": "other", "seeds": [0]}, {"model": "m", "seeds": [3, 5]}],
        [
            Measurement({**labels, "region": "object"}, torch.tensor([[1.0, 2.0], [3.0, math.nan]])),
            Measurement({**labels, "metric": "AP"}, torch.tensor([[0.5]])),
        ],
        images={"m": ["a.jpg", "b.jpg"]},
    )
    frame = result.to_frame()
    assert list(frame.columns) == ["model", "stage", "metric", "seed", "image", "value", "region"]
    assert frame["seed"][:4].tolist() == [3, 3, 5, 5]
    assert frame["image"][:4].tolist() == ["a.jpg", "b.jpg"] * 2
    assert frame["value"][:3].tolist() == [1, 2, 3]
    assert frame["value"].isna().tolist() == [False, False, False, True, False]
    last = frame.iloc[4]
    assert (last["metric"], last["value"]) == ("AP", 0.5)
    assert last[["seed", "image", "region"]].isna().all()
    means = frame[frame.metric == "mse"].groupby("seed")["value"].mean()
    assert means.to_dict() == {3: 1.5, 5: 3.0}
    unknown = replace(result, images={}).to_frame()
    assert unknown["image"][:4].tolist() == [0, 1, 0, 1]


def test_results_of_several_models_are_joined():
    one, other = (
        Result("e", [{"model": model}], [Measurement({"model": model}, torch.ones(1, 2))], images={model: ["a", "b"]})
        for model in ("one", "other")
    )
    joined = Result.join([one, replace(other, notes=["n"])])
    assert joined.values_of("model") == ["one", "other"]
    assert [card["model"] for card in joined.subjects] == ["one", "other"]
    assert (joined.notes, joined.images) == (["n"], {"one": ["a", "b"], "other": ["a", "b"]})
    for wrong in ([], [one, replace(other, experiment="another")]):
        with pytest.raises(UserError, match="joined"):
            Result.join(wrong)


def test_pictures_with_a_file_are_kept_beside_the_result(tmp_path: Path):
    image = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    before = result_of(pictures=[Picture({"stage": "input"}, image, "pictures/a.png")])
    before.write(tmp_path / "result.json")
    (found,) = Result.load(tmp_path).pictures
    assert (found.file, found.labels) == ("pictures/a.png", {"stage": "input"})
    assert torch.allclose(found.image, image, atol=0.5 / 255 + 1e-6)
    (tmp_path / "pictures" / "a.png").write_text("no picture")
    with pytest.raises(UserError, match=r"a\.png.*no image"):
        Result.load(tmp_path)
    (tmp_path / "pictures" / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png.*No such file"):
        Result.load(tmp_path)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png"])
def test_pictures_outside_the_folder_are_refused(tmp_path: Path, name: str):
    text = result_of().to_json().replace('"pictures": []', f'"pictures": [{{"labels": {{}}, "file": "{name}"}}]')
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match="outside"):
        Result.load(tmp_path)


def test_the_errors_of_a_run_of_the_first_version_open(tmp_path: Path):
    """They are means over images, with intervals: these are stated, not computed again."""
    entry = {"mse": [0.02, 0.04], "interval": {"mse": [0.03, 0.01, 0.05]}, "layer_error": [0.2, 0.4]}
    content = {
        "num_images": 7,
        "seeds": [0, 1],
        "value_range": "RGB in [0, 1]",
        "mean_image": {"mse": 0.06},
        "entries": {"encoder": entry},
        "task_metrics": {"AP": [0.5]},
        "card": {"model": "m", "weights": "random", "data": "d", "data_fingerprint": "ab", "steps": 3},
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    found = Result.load(tmp_path)
    assert found.one(stage="encoder", metric="mse").by_seed() == [0.02, 0.04]
    assert tuple(found.one(stage="encoder", metric="mse").interval()) == (0.03, 0.01, 0.05)
    assert found.one(stage="encoder", metric="layer error").interval().mean == pytest.approx(0.3)
    assert found.one(stage="mean image", metric="mse").mean() == 0.06
    assert found.one(metric="AP").by_seed() == [0.5]
    card = found.subjects[0]
    assert (card["model"], card["random"], card["num_images"], card["training"]["steps"]) == ("m", True, 7, 3)
    assert Result.from_json(found.to_json()).to_json() == found.to_json()

"""Runs of every task, through the command line: what they leave, resume, the forward model again, the whole sweep."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from backsight.chain import ChainEnsemble
from backsight.chain.model import open_forward_model
from backsight.cli import main
from backsight.core import UserError
from backsight.experiments.subject import open_subject
from backsight.options import ModelOptions, TrainOptions
from backsight.results import Result
from backsight.training import Interrupted, Run, train_run
from backsight.training.loop import Loop
from commands import refused
from pictures import save_pictures

DETR, VIT = ("zoo/detr-prior", "world:prior"), ("zoo/vit-prior", "world:prior:single")
JOINT = ("--task", "joint", "--trade-off", "0.9", "--forward-learning-rate", "1e-3")


def small(out: Path, steps: int = 3, seeds: int = 1) -> dict[str, Any]:
    sizes = {"steps": steps, "seeds": seeds, "batch_size": 2, "max_validation": 4, "max_test": 6, "workers": 0}
    return {"out": out, **sizes}


def words(out: Path, **changes: Any) -> list[str]:
    """The same for the command line."""
    pairs = {**small(out), **changes}.items()
    return [each for name, value in pairs for each in (f"--{name.replace('_', '-')}", str(value))]


def train(which: tuple[str, str], out: Path, *more: str, **changes: Any) -> Result:
    """A run through the command line -> its ``evaluation.json``."""
    main(["train", which[0], "--data", which[1], "--chain", which[0], "--device", "cpu", *words(out, **changes), *more])
    return Result.load(out / "evaluation.json")


# ---- what a run leaves


@pytest.fixture(scope="module")
def detr_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of joint training of the zoo's DETR, two seeds."""
    out = tmp_path_factory.mktemp("joint") / "detr"
    train(DETR, out, *JOINT, seeds=2, max_validation=8, max_test=8)
    return out


def test_a_joint_run_records_its_settings_and_the_scores_of_its_models(detr_run: Path):
    config = yaml.safe_load((detr_run / "config.yaml").read_text())
    settings = {name: config[name] for name in ("task", "trade_off", "update", "stage", "forward_learning_rate")}
    assert settings == {
        **{"task": "joint", "trade_off": 0.9, "update": "chain", "stage": "decoder", "forward_learning_rate": 1e-3}
    }
    evaluation = Result.load(detr_run / "evaluation.json")
    errors = evaluation.select(metric="mse")
    assert [each.labels["stage"] for each in errors] == ["backbone", "encoder", "decoder", "mean image"]
    assert evaluation.subjects[0]["seeds"] == [0, 1]
    assert [len(each.values) for each in errors] == [2, 2, 2, 1]
    precisions = evaluation.one(metric="AP").by_seed()
    assert len(precisions) == 2
    assert all(0 < each <= 1 for each in precisions)
    records = [json.loads(line) for line in (detr_run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [each for each in records if "validation" in each]
    assert len(evaluations[-1]["task_metrics"]["AP"]) == 2
    assert {"0/task", "0/image", "0/joint"} <= evaluations[-1]["validation"].keys()
    card = (detr_run / "card.md").read_text()
    assert "joint, lambda 0.9, update chain, from decoder" in card
    assert f"AP of the forward model on the test images: {precisions[0]:.3f}, {precisions[1]:.3f}" in card


def test_the_forward_model_of_every_seed_is_loaded_again(detr_run: Path):
    digests = set()
    for seed in (0, 1):
        ensemble = ChainEnsemble.from_pretrained(detr_run / "chains" / str(seed))
        model = open_forward_model(ensemble)
        digests.add(model.digest())
        assert "trained jointly" in model.weights
        with pytest.raises(UserError, match="other weights"):
            ensemble.check(open_forward_model(ChainEnsemble.from_pretrained(DETR[0])))
    assert len(digests) == 2


def test_experiments_measure_one_seed_of_a_joint_run(detr_run: Path):
    subject = open_subject(chain=detr_run / "chains" / "1", num_images=2)
    assert subject.stages == ["backbone", "encoder", "decoder"]
    assert subject.data.name == DETR[1]
    assert subject.mean_image.shape == (3, 96, 96)
    found = subject.reconstruct(subject.batches[0], "decoder")
    assert found.shape == (1, 2, 3, 96, 96)


def test_reconstruct_takes_a_seed_of_a_joint_run(detr_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.new("RGB", (96, 96), (200, 40, 40)).save(tmp_path / "red.png")
    picture, out = str(tmp_path / "red.png"), str(tmp_path / "out")
    main(["reconstruct", str(detr_run / "chains" / "0"), picture, "--out", out, "--device", "cpu"])
    assert (tmp_path / "out" / "report.html").is_file()
    capsys.readouterr()
    assert "RUN/chains/0" in refused(capsys, "reconstruct", str(detr_run), picture, "--out", out)


def test_a_missing_or_damaged_forward_model_is_refused(detr_run: Path, tmp_path: Path):
    chain = ChainEnsemble.from_pretrained(detr_run / "chains" / "0")
    copy = chain.chains[0].save(tmp_path / "chains" / "0")
    with pytest.raises(UserError, match="keep them together"):
        open_forward_model(ChainEnsemble.from_pretrained(copy))
    (tmp_path / "forward" / "0").mkdir(parents=True)
    (tmp_path / "forward" / "0" / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(UserError, match="damaged"):
        open_forward_model(ChainEnsemble.from_pretrained(copy))


def test_chains_of_a_joint_run_are_not_published_without_their_models(detr_run: Path):
    with pytest.raises(UserError, match="push a modular run"):
        ChainEnsemble.from_pretrained(detr_run).push_to_hub("someone/chains")


# ---- resume


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"task": "modular"}, marks=pytest.mark.slow),
        {"task": "classic"},
        {"task": "joint", "trade_off": 0.5, "update": "isolated"},
    ],
    ids=["modular", "classic", "joint"],
)
def test_an_interrupted_run_of_every_task_resumes_to_the_same_weights(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def run(name: str, **more: Any) -> list[torch.Tensor]:
        given = {**small(tmp_path / name, 4), "evaluate_every": 2, **options, **more}
        ensemble = train_run(VIT[0], TrainOptions(data=VIT[1], chain=VIT[0], **given), ModelOptions(device="cpu"))
        forward = open_forward_model(ensemble).module.state_dict()
        return [*ensemble.chains[0].state_dict().values(), *forward.values()]

    whole, original = run("whole"), Run.loop

    def interrupted(self: Run, *arguments: Any) -> Loop:
        loop = original(self, *arguments)
        monkeypatch.setattr(Run, "loop", original)
        step = loop.step
        loop.step = lambda batch: (step(batch), loop.state.step == 3 and signal.raise_signal(signal.SIGINT))
        return loop

    monkeypatch.setattr(Run, "loop", interrupted)
    with pytest.raises(Interrupted):
        run("parts")
    assert all(map(torch.equal, whole, run("parts", resume=True)))
    with pytest.raises(UserError, match="finished"):
        run("parts", resume=True)


# ---- the sweep


def test_a_sweep_trains_every_task_keeps_finished_runs_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    out = tmp_path / "sweep"
    command = ["sweep", VIT[0], "--data", VIT[1], "--chain", VIT[0], "--device", "cpu", *words(out, steps=2)]
    main([*command, "--tasks", "modular", "joint", "--trade-offs", "0.5"])
    assert {path.name for path in out.iterdir()} == {"modular", "joint-0.5", "trade_off"}
    before = {name: (out / name / "card.md").stat().st_mtime_ns for name in ("modular", "joint-0.5")}
    (out / "joint-0.5" / "card.md").unlink()  # as if it had been stopped before its end
    caplog.set_level("INFO")
    main([*command, "--trade-offs", "0.5"])
    told = [record.getMessage() for record in caplog.records if record.name == "backsight.sweeps"]
    assert told == ["modular: done already", "classic", "joint-0.5"]
    assert (out / "modular" / "card.md").stat().st_mtime_ns == before["modular"]
    result = json.loads((out / "trade_off" / "result.json").read_text())
    rows = [each["labels"] for each in result["measurements"]]
    assert {(each["task"], each["metric"]) for each in rows} == {
        (task, metric) for task in ("modular", "classic", "joint") for metric in ("mse", "saturation", "accuracy")
    }
    assert {each.get("trade_off") for each in rows} == {None, 0.5}
    assert {each["stage"] for each in rows} == {"encoder"}
    assert (out / "trade_off" / "figure.png").is_file()
    capsys.readouterr()
    changed = [*command, "--trade-offs", "0.5"]
    changed[changed.index("--steps") + 1] = "3"
    assert "steps = 2, not 3" in refused(capsys, *changed)


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zoo/vit-prior", "--task", "joint", "--trade-off", "2"], "from 0 to 1"),
        (["zoo/vit-prior", "--task", "classic", "--stage", "nose"], "no stage 'nose'"),
        (["zoo/vit-prior", "--task", "joint", "--trade-off", "0.5"], "has no class of the whole image"),
        (["zoo/detr-prior", "--task", "joint", "--trade-off", "0.5", "--data", "world:prior", "--seed", "7",
          "--chain", "zoo/detr-prior"], "no chain of seed 7"),
        (["zoo/detr-prior", "--task", "classic", "--inverse", "encoder@b=encoder"], "give it as encoder=..."),
        (["zoo/detr-prior", "--task", "classic", "--inverse", "encoder=encoder:input_noise=1"], "for modular training"),
        (["zoo/vit-prior", "--inverse", "encoder=blocks:depth=0"], "the inverse of encoder has no weights to train"),
        (["zoo/vit-prior", "--data", "world:99999999999"], "99999999999 in 'world:99999999999' is no seed"),
        (["zoo/vit-prior", "--seed", "99999999999"], "seed"),
        (["zoo/detr-prior", "--chain", "zoo/vit-prior"], "use the model that the chain was trained on"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = ["--out", str(tmp_path / "run"), "--device", "cpu"]
    assert message in refused(capsys, "train", *arguments, *out)
    assert not (tmp_path / "run").exists()


def test_joint_training_needs_ground_truth_of_the_model_s_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_pictures(tmp_path / "photos", [f"class{number % 10}/{number}.png" for number in range(40)])
    common = ["--task", "joint", "--trade-off", "0.5", "--out", str(tmp_path / "run"), "--device", "cpu"]
    photos = f"folder:{tmp_path / 'photos'}"
    said = refused(capsys, "train", "zoo/vit-prior", "--data", photos, *common)
    assert "has 10 classes that are none of the 8 of zoo/vit-prior, the first is 'class0'" in said
    assert "no boxes of objects" in refused(capsys, "train", "zoo/detr-prior", "--data", photos, *common)

"""Weights as people have them: shards, training checkpoints, averages, prefixes, adapters, other heads and channels."""

from __future__ import annotations

import argparse
import builtins
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

import backsight as bs
from backsight.core import Classes, Pixels, UserError
from backsight.engine import StagedModel
from backsight.models import load_model
from backsight.verification import verify
from marks import quick
from numerics import assert_rounding
from small import assert_same_answers, random_images, save_timm, save_transformers, train_and_reconstruct

State = dict[str, Tensor]


FOLDERS = ["vit", "vit-transformers", "detr"]
ONE_FOR_ALL = pytest.mark.parametrize("folder", quick(FOLDERS, "vit"), indirect=True)
"""For what is done with the names in a file, whatever the library."""


@pytest.fixture(params=quick(FOLDERS, "vit", "detr"))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a small model of timm or transformers."""
    (save_timm if request.param == "vit" else save_transformers)(request.param, tmp_path / "saved")
    return tmp_path / "saved"


def state_of(folder: Path) -> State:
    return load_file(folder / "model.safetensors")


# ---- shards


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_in_several_files_are_read(kind: str, folder: Path) -> None:
    whole, state = load_model(str(folder)), state_of(folder)
    (folder / "model.safetensors").unlink()
    stem, save = ("model", save_file) if kind == "safetensors" else ("pytorch_model", torch.save)
    files = {name: f"{stem}-{1 + index % 2:05}-of-00002.{kind}" for index, name in enumerate(state)}
    for file in set(files.values()):
        save({name: value for name, value in state.items() if files[name] == file}, folder / file)
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert_same_answers(load_model(str(folder)), whole)
    next(folder.glob(f"{stem}-00002*")).unlink()
    refused(f"no file of weights at .*{stem}-00002-of-00002.{kind}", str(folder))
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.bin"}}))
    refused("names no files of weights beside it", str(folder))


# ---- what trainings leave


@ONE_FOR_ALL
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model._orig_mod.", "net."])
def test_prefixes_of_wrappers_are_dropped(prefix: str, folder: Path, tmp_path: Path) -> None:
    state = {f"{prefix}{name}": value for name, value in state_of(folder).items()}
    beside = {"criterion.weight": torch.ones(3)} if prefix.startswith(("model", "net")) else {}
    torch.save({"state_dict": {**state, **beside}, "epoch": 3}, tmp_path / "last.ckpt")
    assert_same_answers(load_model(str(folder), weights=tmp_path / "last.ckpt"), load_model(str(folder)))


def test_prefixes_are_dropped_for_a_model_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 1))\n"
    )
    monkeypatch.chdir(tmp_path)
    spec = {
        "pixels": {"size": [16, 16]},
        "stages": [{"name": "map", "site": {"path": "0", "pattern": "b d h w"}, "inverse": "residual"}],
    }
    module = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 1))
    torch.save({"state_dict": {f"model.{name}": value for name, value in module.state_dict().items()}}, "last.ckpt")
    model = load_model("mine.py:build", spec=spec, weights="last.ckpt")
    assert all(map(torch.equal, model.module.state_dict().values(), module.state_dict().values()))


@ONE_FOR_ALL
@pytest.mark.parametrize("names", [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("model", "ema")])
def test_averages_are_taken_only_when_asked_for(
    names: tuple[str, str], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, file = state_of(folder), tmp_path / "checkpoint.pth"
    average = {name: value + 1 if value.is_floating_point() else value for name, value in own.items()}
    torch.save({names[0]: own, names[1]: {"module": average} if names[1] == "ema" else average}, file)
    with caplog.at_level("INFO"):
        assert load_model(str(folder), weights=file).digest() == load_model(str(folder)).digest()
    assert f"{file}:ema takes these" in caplog.text
    save_file(average, tmp_path / "average.safetensors")
    averaged = load_model(str(folder), weights=f"{file}:ema")
    assert averaged.weights == f"{file}:ema"
    assert averaged.digest() == load_model(str(folder), weights=tmp_path / "average.safetensors").digest()
    torch.save({names[1]: average}, file)
    if names[1] != "ema":
        refused(f"holds moving averages alone, under '{names[1]}': name them, as .*:ema", str(folder), weights=file)
    assert load_model(str(folder), weights=f"{file}:ema").digest() == averaged.digest()
    refused("has no 'teacher' in it: it holds", str(folder), weights=f"{file}:teacher")


def test_a_run_on_averages_is_opened_again_and_says_so(tmp_path: Path) -> None:
    save_timm("vit", tmp_path / "saved")
    state = state_of(tmp_path / "saved")
    torch.save({"model_ema": {name: value * 0.5 for name, value in state.items()}}, tmp_path / "c.pth")
    model = load_model(str(tmp_path / "saved"), weights=f"{tmp_path / 'c.pth'}:ema")
    assert "c.pth:ema" in train_and_reconstruct(model, tmp_path)


def test_options_and_measurements_beside_the_weights_are_read(tmp_path: Path) -> None:
    save_timm("vit", tmp_path / "saved")
    beside = {
        "args": argparse.Namespace(lr=1e-3, data=["a", "b"]),
        "best": np.float64(0.7),
        "step": np.int64(3),
        "curve": np.arange(4.0),
        "seed": np.random.default_rng(0).integers(0, 9, 3),
    }
    torch.save({"model": state_of(tmp_path / "saved"), **beside}, tmp_path / "c.pth")
    loaded = load_model(str(tmp_path / "saved"), weights=tmp_path / "c.pth")
    assert loaded.digest() == load_model(str(tmp_path / "saved")).digest()


# ---- heads


def with_classes(state: State, classes: int) -> State:
    """The tensors of a head, cut to so many classes."""
    heads = ("head.", "classifier.", "class_labels_classifier.")
    length = classes + any(name.startswith("class_labels") for name in state)
    return {name: value[:length].clone() if name.startswith(heads) else value for name, value in state.items()}


def test_the_number_of_classes_is_read_from_the_head(folder: Path, tmp_path: Path) -> None:
    torch.save(with_classes(state_of(folder), 3), tmp_path / "mine.pth")
    model = load_model(str(folder), weights=tmp_path / "mine.pth")
    answer = model.predict(model.run(random_images(model)))
    if isinstance(answer, Classes):
        assert answer.logits.shape[1] == 3
    else:
        assert model.run(random_images(model))["prediction"].shape[2] == 3 + 1 + 4
    assert [check.name for check in verify(model) if not check.passed] == []


def test_weights_without_a_head_give_features(tmp_path: Path) -> None:
    state = timm.create_model("test_vit").state_dict()
    torch.save({name: value for name, value in state.items() if not name.startswith("head.")}, tmp_path / "bare.pth")
    model = load_model("test_vit", weights=tmp_path / "bare.pth")
    assert model.spec.task == "features"
    assert torch.equal(model.module.state_dict()["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc1.weight"])


def test_more_layers_than_the_configuration_says_are_refused(tmp_path: Path) -> None:
    save_transformers("vit-transformers", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    refused(r"16 tensors are not of this model \(first: vit\..*\.2\.", str(tmp_path))


# ---- folders of other kinds


def test_a_model_of_timm_that_transformers_saved_is_the_one_inside(tmp_path: Path) -> None:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    labels = dict(enumerate("abcd"))
    config = TimmWrapperConfig(architecture="test_vit", id2label=labels)
    wrapper = TimmWrapperForImageClassification(config).eval()
    wrapper.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert model.stages == ["backbone", "encoder"]
    images = random_images(model)
    found = model.predict(model.run(images))
    assert found.labels == labels
    assert_rounding(found.logits, wrapper(model.pixels.normalise(images)).logits)


def adapter(tmp_path: Path) -> tuple[Path, Path]:
    save_transformers("vit-transformers", tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    said = {"base_model_name_or_path": str(tmp_path / "base"), "peft_type": "LORA"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    return tmp_path / "base", tmp_path / "adapter"


def test_an_adapter_without_peft_is_to_be_merged_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, folder = adapter(tmp_path)
    real = builtins.__import__

    def none(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", none)
    refused(rf"is an adapter \(LoRA\) of {base}: pip install peft, or merge it first", str(folder))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft and transformers among themselves
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_an_adapter_is_merged_into_its_model(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]
    from transformers import ViTForImageClassification

    base, folder = adapter(tmp_path)
    module = ViTForImageClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    options = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"], "init_lora_weights": False}
    model = get_peft_model(module, LoraConfig(r=2, **options)).eval()
    model.save_pretrained(folder)
    merged = load_model(str(folder))
    images = random_images(merged)
    found = merged.predict(merged.run(images))
    assert found.logits.shape[1] == 3
    assert_rounding(found.logits, model(merged.pixels.normalise(images), interpolate_pos_encoding=True).logits, 1e-4)


# ---- channels


def save_channels(library: str, channels: int, folder: Path) -> Callable[[Tensor], Tensor]:
    """A small model that takes so many channels, saved; what it makes of its input."""
    torch.manual_seed(0)
    if library == "timm":
        module = timm.create_model("test_vit", in_chans=channels).eval()
        save_for_hf(module, str(folder), model_args={"in_chans": channels}, safe_serialization=True)
        return module
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {"image_size": 48, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    config = ViTConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, num_channels=channels)
    other = ViTForImageClassification(config).eval()
    other.save_pretrained(folder)
    statistics = {"image_mean": [0.4] * channels, "image_std": [0.3] * channels}
    (folder / "preprocessor_config.json").write_text(json.dumps({**statistics, "size": {"height": 48, "width": 48}}))
    return lambda pixels: other(pixels).logits


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_pictures_are_converted_for_other_numbers_of_channels(
    library: str, channels: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forward = save_channels(library, channels, tmp_path / "saved")
    with caplog.at_level("INFO"):
        model = load_model(str(tmp_path / "saved"))
    assert f"takes {channels} channel" in caplog.text
    mean, std = (0.5, 0.5) if library == "timm" else (0.4, 0.3)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*model.pixels.size, 3), dtype="uint8"))
    images = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255
    as_pillow = np.array(photo.convert("L" if channels == 1 else "RGBA"), dtype="float32") / 255
    native = torch.from_numpy(as_pillow).reshape(1, *model.pixels.size, channels).permute(0, 3, 1, 2)
    found = model.predict(model.run(images))
    # Pillow rounds brightness to whole numbers
    torch.testing.assert_close(
        model.pixels.as_input(images), (native - mean) / std, rtol=0, atol=0.5 / 255 / std + 1e-4
    )
    assert_rounding(found.logits, forward(model.pixels.as_input(images)))
    assert [check.name for check in verify(model) if not check.passed] == []


def test_a_model_of_one_channel_is_trained_and_says_so(tmp_path: Path) -> None:
    save_channels("timm", 1, tmp_path / "saved")
    assert "brightness" in train_and_reconstruct(load_model(str(tmp_path / "saved")), tmp_path)


def test_other_numbers_of_channels_are_refused(tmp_path: Path) -> None:
    save_channels("transformers", 6, tmp_path / "saved")
    refused("takes 6 channels: pictures have 3", str(tmp_path / "saved"))


def test_a_spec_names_the_channels() -> None:
    module = nn.Conv2d(1, 8, 4, 4)
    site = {"path": "", "pattern": "b d h w"}
    stages = [{"name": "map", "site": site, "inverse": "residual"}]
    model: StagedModel = bs.stage(module, {"pixels": {"size": [16, 16], "channels": 1}, "stages": stages})
    images = torch.rand(2, 3, 16, 16)
    assert_rounding(model.run(images).output, module(Pixels((16, 16), channels=1).as_input(images)))


def refused(message: str, *args: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=message):
        load_model(*args, **options)

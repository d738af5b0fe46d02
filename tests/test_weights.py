"""Weights of forward models: files, pickles, seeds, and names and folders that hold none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backsight.core import UserError
from backsight.engine import RANDOM
from backsight.models import MODELS, load_model
from damage import Trap
from marks import quick
from small import assert_same_answers, save_timm, save_transformers

SIZE = (64, 96)


# ---- files and seeds


@pytest.fixture
def tiny_detr(monkeypatch: pytest.MonkeyPatch) -> str:
    """A well-known name for a DETR that is small."""
    small: Any = MODELS["detr"].small()
    options = {name: value for name, value in small.config.to_dict().items() if name != "model_type"}
    family = replace(MODELS["detr"], names={"detr-tiny": "nobody/detr-tiny"}, configure={"detr-tiny": options})
    monkeypatch.setitem(MODELS, "detr", family)
    return "detr-tiny"


FILES: dict[str, Callable[[dict[str, torch.Tensor], Path], object]] = {
    "weights.safetensors": save_file,
    "weights.pth": torch.save,
    "checkpoint.pth": lambda state, path: torch.save({"model": state, "epoch": 3}, path),
    "other.pt": lambda state, path: torch.save({"state_dict": state}, path),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", ["detr-tiny", "test_vit"])
def test_a_file_of_weights_is_loaded(name: str, file: str, tiny_detr: str, tmp_path: Path) -> None:
    original = load_model(name, random_weights=True, seed=3, size=SIZE if name == tiny_detr else None)
    FILES[file](original.module.state_dict(), tmp_path / file)
    loaded = load_model(name, weights=tmp_path / file, size=SIZE if name == tiny_detr else None)
    assert loaded.weights == str(tmp_path / file)
    assert_same_answers(loaded, original)


@pytest.fixture(params=["vit", "detr", "dinov2"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a small model, as its library saves it."""
    (save_timm if request.param == "vit" else save_transformers)(request.param, tmp_path / "saved")
    return tmp_path / "saved"


def test_a_folder_is_filled_from_another_file(saved: Path, tmp_path: Path) -> None:
    other = load_model(str(saved), random_weights=True, seed=9)
    state = {name: value.clone() for name, value in other.module.state_dict().items()}
    save_file(state, tmp_path / "named as in the module.safetensors")
    files = [tmp_path / "named as in the module.safetensors"]
    if hasattr(other.module, "save_pretrained"):  # of transformers, which saves under the names of older versions
        other.module.save_pretrained(tmp_path / "other")  # pyright: ignore[reportCallIssue]
        files.append(tmp_path / "other" / "model.safetensors")
    for file in files:
        loaded = load_model(str(saved), weights=file)
        assert loaded.weights == str(file)
        assert_same_answers(loaded, other)
        assert load_model(str(saved), weights=file, random_weights=True).digest() == other.digest()
    assert load_model(str(saved)).digest() != other.digest()
    expect_mistake("no file of weights at .*none.pth", str(saved), weights=tmp_path / "none.pth")
    save_file({"nose.weight": torch.zeros(2)}, tmp_path / "nose.safetensors")
    expect_mistake(r"are of another model: \d+ tensors are missing", str(saved), weights=tmp_path / "nose.safetensors")
    last = [name for name, value in state.items() if value.dim() > 1][-1]
    save_file({**state, last: state[last][:1].clone()}, tmp_path / "cut.safetensors")
    expect_mistake("are of another model", str(saved), weights=tmp_path / "cut.safetensors")


def test_a_folder_s_model_is_built_with_random_weights(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    state = torch.random.get_rng_state()
    models = [load_model(str(saved), random_weights=True, seed=seed) for seed in (5, 5, 6)]
    assert models[0].digest() == models[1].digest() != models[2].digest()
    assert {model.weights for model in models} == {RANDOM}
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_of_the_zoo_can_have_other_weights(tmp_path: Path) -> None:
    trained, random = load_model("zoo/vit-prior"), load_model("zoo/vit-prior", random_weights=True, seed=1)
    assert (trained.weights, random.weights) == ("zoo/vit-prior", RANDOM)
    assert trained.digest() != random.digest()
    assert trained.pixels == random.pixels
    save_file(random.module.state_dict(), tmp_path / "other.safetensors")
    other = load_model("zoo/vit-prior", weights=tmp_path / "other.safetensors")
    assert (other.weights, other.digest()) == (str(tmp_path / "other.safetensors"), random.digest())
    expect_mistake("no file of weights at .*none.pth", "zoo/vit-prior", weights=tmp_path / "none.pth")


def test_a_named_model_takes_the_file_that_its_library_saves(tiny_detr: str, tmp_path: Path) -> None:
    module: Any = load_model(tiny_detr, random_weights=True, seed=3, size=SIZE).module
    module.save_pretrained(tmp_path)
    loaded = load_model(tiny_detr, weights=tmp_path / "model.safetensors", size=SIZE)
    assert all(map(torch.equal, loaded.module.state_dict().values(), module.state_dict().values()))


@pytest.mark.parametrize("where", ["file", "timm", "transformers"])
def test_a_pickle_is_never_run(where: str, tmp_path: Path) -> None:
    trap = {"weight": torch.zeros(1), "trap": Trap(tmp_path / "sprung")}
    if where == "file":
        torch.save(trap, tmp_path / "weights.pth")
        load = lambda: load_model("test_vit", weights=tmp_path / "weights.pth")  # noqa: E731
    else:
        save_timm("vit", tmp_path) if where == "timm" else save_transformers("detr", tmp_path)
        (tmp_path / "model.safetensors").unlink()
        torch.save(trap, tmp_path / "pytorch_model.bin")
        load = lambda: load_model(str(tmp_path))  # noqa: E731
    with pytest.raises(UserError, match=r"holds more than tensors, .* give a \.safetensors file"):
        load()
    assert not (tmp_path / "sprung").exists()


# ---- the user's mistakes


def expect_mistake(message: str, *args: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=message):
        load_model(*args, **options)


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("detr-resnet-5O", "detr-resnet-50"),
        ("vit_base_patch16_244", "vit_base_patch16_224"),
        ("swin_base_patch4_window_224", "swin_base_patch4_window7_224"),
    ],
)
def test_an_unknown_name_offers_the_nearest(name: str, offered: str) -> None:
    expect_mistake(f"no model '{name}': the nearest names are .*{offered}", name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qqqqqqqqqqqq", "no model 'qqqqqqqqqqqq': see `backsight models`"),
        ("zoo/nose", "no model 'zoo/nose' in the zoo"),
    ],
)
def test_a_name_that_means_nothing(name: str, message: str) -> None:
    expect_mistake(message, name, random_weights=True)


def test_offline_says_what_to_put_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name, hub_name in (
        ("detr-resnet-50", "facebook/detr-resnet-50"),
        ("facebook/detr-resnet-50", "facebook/detr-resnet-50"),
        ("vit_base_patch16_224", "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        ("someone/some-model", "someone/some-model"),
    ):
        expect_mistake(
            rf"{hub_name} is not in the local cache and HF_HUB_OFFLINE is set: .*config\.json and model\.safetensors",
            name,
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"no config\.json"),
        ("{", "is not JSON"),
        ("[]", "is not a model's configuration"),
        ("{}", "names neither a 'model_type' nor an 'architecture'"),
        ('{"model_type": "bert"}', r"has no weights: it should hold model\.safetensors beside config\.json"),
        ('{"architecture": "nose_vit"}', "holds a 'nose_vit', which timm .* does not know"),
        ('{"architecture": "test_vit"}', r"has no weights: it should hold model\.safetensors beside config\.json"),
        ('{"model_type": "detr"}', r"has no weights: it should hold model\.safetensors beside config\.json"),
    ],
)
def test_a_folder_that_is_no_model(config: str | None, message: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    expect_mistake(message, str(tmp_path))
    if config is not None and "nose_vit" in config:
        expect_mistake(message, str(tmp_path), size=SIZE)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{", r"preprocessor_config\.json is not JSON"),
        ("[]", r"preprocessor_config\.json is not a model's configuration"),
        ('{"crop_size": {"shortest_edge": 48}}', r"preprocessor_config\.json cannot be read \(KeyError: 'height'\)"),
        ('{"size": {"height": 48, "width": 48}, "image_mean": 5}', r"preprocessor_config\.json cannot be read"),
    ],
)
def test_a_folder_with_a_broken_preprocessor(said: str, message: str, tmp_path: Path) -> None:
    save_transformers("dinov2", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(said)
    expect_mistake(message, str(tmp_path))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": -48}, "negative dimension -48"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("random", [False, True])
def test_a_configuration_that_the_library_refuses(
    value: dict[str, Any], words: str, random: bool, tmp_path: Path
) -> None:
    save_transformers("dinov2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **value}))
    expect_mistake(
        rf"{tmp_path}/config\.json is refused by transformers \(.*{words}", str(tmp_path), random_weights=random
    )


def test_arguments_that_an_architecture_refuses(tmp_path: Path) -> None:
    config = {"architecture": "test_vit", "pretrained_cfg": {}, "model_args": {"embed_dim": -48}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    expect_mistake(r"config\.json is refused by timm \(.*negative dimension", str(tmp_path), random_weights=True)


TRANSFORMERS = [name for name, family in MODELS.items() if family.library == "transformers"]


@pytest.mark.parametrize(
    "family", quick(TRANSFORMERS, "detr", "deformable_detr", "rt_detr", "vit-transformers", "dinov2")
)
def test_a_configuration_that_names_no_class(family: str, tmp_path: Path) -> None:
    """A detector where the type has one, else a classifier, or a bare model if there are no weights of a head."""
    module: Any = save_transformers(family, tmp_path)
    for each in (module, module.base_model) if hasattr(module, "classifier") else (module,):
        each.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        named = load_model(str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": None}))
        assert_same_answers(load_model(str(tmp_path)), named)
        assert type(load_model(str(tmp_path), random_weights=True).module) is type(module)


@pytest.mark.parametrize("content", ["broken", "other", "shapes"])
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_folder_with_weights_that_do_not_fit(library: str, content: str, tmp_path: Path) -> None:
    save_timm("vit", tmp_path) if library == "timm" else save_transformers("detr", tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    if content == "broken":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        (head,) = (name for name in state if name in ("head.weight", "class_labels_classifier.weight"))
        save_file({"nose": state[head]} if content == "other" else {**state, head: state[head][:2].clone()}, path)
    expect_mistake("cannot be read as weights" if content == "broken" else "are of another model", str(tmp_path))


@pytest.mark.parametrize("name", ["detr-tiny", "test_vit"])
def test_a_file_with_weights_of_another_model(name: str, tiny_detr: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"nose.weight": torch.zeros(2)}, path)
    expect_mistake(
        r"\d+ tensors are missing \(first: .*\), 1 tensors are not of this model \(first: nose", name, weights=path
    )
    state = load_model(name, random_weights=True).module.state_dict()
    save_file({key: value[:1].clone() if value.dim() else value for key, value in state.items()}, path)
    expect_mistake(
        r"are of another model: \S+ is .* there and .* in the model, and \d+ more differ", name, weights=path
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("none.pth", None, "no file of weights at"),
        ("empty.pth", b"", "cannot be read as weights"),
        ("text.pth", b"hello", "cannot be read as weights"),
        ("text.safetensors", b"hello", "cannot be read as weights"),
    ],
)
def test_a_file_that_holds_no_weights(file: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)
    expect_mistake(message, "test_vit", weights=tmp_path / file)


def test_a_list_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    expect_mistake("holds no state_dict", "test_vit", weights=tmp_path / "list.pth")


def test_a_file_in_place_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").touch()
    expect_mistake("is a file of weights: name the model it belongs to", str(tmp_path / "weights.pth"))

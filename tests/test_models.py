"""Loading forward models: names, folders, files of weights, and what each says of its pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn

from backsight.core import Classes, Pixels, UserError
from backsight.models import MODELS, from_timm, load_model, stage_module
from backsight.staging import RANDOM, StagedModel
from backsight.verify import tensors
from small import random_images

TRANSFORMERS = [name for name, family in MODELS.items() if family.library == "transformers"]
TIMM = [name for name, family in MODELS.items() if family.library == "timm"]
SIZE = (64, 96)


def same_answers(one: StagedModel, other: StagedModel) -> bool:
    """The same pixels, the same weights, and bit for bit the same output and features."""
    images = random_images(one)
    a, b = one.run(images), other.run(images)
    assert one.pixels == other.pixels
    assert one.digest() == other.digest()
    assert all(map(torch.equal, tensors(a.output), tensors(b.output)))
    return all(torch.equal(a[name], b[name]) for name in one.names)


# ---- folders of transformers


def saved(name: str, folder: Path) -> nn.Module:
    """A small model of transformers, saved as its library does."""
    torch.manual_seed(0)
    module: Any = MODELS[name].small()
    module.save_pretrained(folder)
    return module


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_folder_of_transformers_is_the_model_that_was_saved(name: str, tmp_path: Path) -> None:
    module = saved(name, tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.weights == str(tmp_path)
    assert same_answers(loaded, stage_module(module, MODELS[name], loaded.pixels, name="original"))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_folder_of_transformers_in_an_old_format_loads_too(name: str, tmp_path: Path) -> None:
    module = saved(name, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    loaded = load_model(str(tmp_path))
    assert same_answers(loaded, stage_module(module, MODELS[name], loaded.pixels, name="original"))


def save_legacy_detr(folder: Path) -> nn.Module:
    """A DETR with timm's backbone, its configuration written as the first checkpoints on the hub have it."""
    from transformers import DetrConfig, DetrForObjectDetection, TimmBackboneConfig

    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    widths = {"num_labels": 4, "num_queries": 7, "d_model": 32, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    backbone = {"backbone": "test_resnet", "use_pretrained_backbone": False, "out_indices": [1, 2, 3, 4]}
    config = DetrConfig(backbone_config=TimmBackboneConfig(**backbone), **layers, **widths)
    module = DetrForObjectDetection(config)
    module.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"backbone_config": None, "backbone": "test_resnet", "use_timm_backbone": True, "num_channels": 3}
    raw |= {"use_pretrained_backbone": True, "backbone_kwargs": {"in_chans": 3, "out_indices": [1, 2, 3, 4]}}
    (folder / "config.json").write_text(json.dumps(raw))
    return module


def test_a_configuration_with_backbone_kwargs_asks_no_hub(tmp_path: Path) -> None:
    module = save_legacy_detr(tmp_path)
    loaded = load_model(str(tmp_path), size=SIZE)
    assert same_answers(loaded, stage_module(module, MODELS["detr"], loaded.pixels, name="original"))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, Pixels((480, 640))),
        ({"size": {"height": 64, "width": 96}}, Pixels((64, 96))),
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}, "resample": 3}, Pixels((480, 640), interpolation="bicubic")),
        (
            {"size": 800, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.1, 0.2, 0.3], "resample": 1},
            Pixels((480, 640), (0.5, 0.5, 0.5), (0.1, 0.2, 0.3), "lanczos"),
        ),
    ],
)  # fmt: skip
def test_pixels_come_from_the_preprocessor(said: dict[str, Any] | None, expected: Pixels, tmp_path: Path) -> None:
    saved("detr", tmp_path)
    if said is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert load_model(str(tmp_path)).pixels == expected
    assert load_model(str(tmp_path), size=SIZE).pixels == replace(expected, size=SIZE)


# ---- folders of timm


SMALL_TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("test_vit", {}),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4]}),
}
"""An architecture that timm has registered, and what makes it small."""


def saved_timm(name: str, folder: Path) -> nn.Module:
    """A small model of timm, saved as the hub has it."""
    torch.manual_seed(0)
    architecture, options = SMALL_TIMM[name]
    module = timm.create_model(architecture, **options)
    save_for_hf(module, str(folder), model_args=options, safe_serialization=True)
    return module


@pytest.mark.parametrize("name", SMALL_TIMM)
def test_a_folder_of_timm_is_the_model_that_was_saved(name: str, tmp_path: Path) -> None:
    module = saved_timm(name, tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.spec.family == name
    assert loaded.weights == str(tmp_path)
    original = stage_module(module, MODELS[name], from_timm.pixels(module, None), name="original")
    assert same_answers(loaded, original)
    assert isinstance(loaded.predict(loaded.run(random_images(loaded))), Classes)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("vit_base_patch16_224", Pixels((224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", "crop", 0.9)),
        ("deit_base_patch16_224", Pixels((224, 224), interpolation="bicubic", fit="crop", crop_fraction=0.9)),
        ("swin_base_patch4_window7_224", Pixels((224, 224), interpolation="bicubic", fit="crop", crop_fraction=0.9)),
        ("vit_base_patch14_reg4_dinov2", Pixels((518, 518), interpolation="bicubic", fit="crop", crop_fraction=1.0)),
    ],
)
def test_pixels_come_from_timm_s_data_configuration(architecture: str, expected: Pixels) -> None:
    with torch.device("meta"):
        module = timm.create_model(architecture)
    assert from_timm.pixels(module, None) == expected


@pytest.mark.parametrize("name", TIMM)
def test_known_names_of_timm_are_of_their_family(name: str) -> None:
    for short in MODELS[name].names:
        assert timm.is_model(short)
        with torch.device("meta"):
            assert type(timm.create_model(short)).__name__ == MODELS[name].kind


def test_a_larger_image_resamples_the_position_embedding(tmp_path: Path) -> None:
    module: Any = saved_timm("vit", tmp_path)
    model = load_model(str(tmp_path), size=(96, 128))
    assert model.pixels.size == (96, 128)
    assert model.layout("backbone").grid == (6, 8)
    resized: Any = model.module
    assert resized.pos_embed.shape == (1, 49, 64)
    assert torch.equal(resized.pos_embed[:, 0], module.pos_embed[:, 0])  # the class token has no place
    assert not torch.equal(resized.pos_embed, torch.zeros_like(resized.pos_embed))
    with pytest.raises(UserError, match=r"cannot take images of 97x128 pixels: its patches are 16x16"):
        load_model(str(tmp_path), size=(97, 128))


def test_a_detr_takes_any_size(tmp_path: Path) -> None:
    saved("detr", tmp_path)
    assert load_model(str(tmp_path), size=(97, 70)).layout("backbone").grid == (4, 3)
    assert load_model(str(tmp_path)).layout("encoder").grid == (15, 20)


# ---- files of weights, random weights


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
    assert same_answers(loaded, original)


@pytest.mark.parametrize("name", ["detr-tiny", "test_vit"])
def test_random_weights_are_drawn_from_the_seed(name: str, tiny_detr: str) -> None:
    state = torch.random.get_rng_state()
    models = [load_model(name, random_weights=True, seed=seed) for seed in (5, 5, 6)]
    assert models[0].digest() == models[1].digest() != models[2].digest()
    assert {model.weights for model in models} == {RANDOM} == {"random"}
    assert torch.equal(torch.random.get_rng_state(), state)


class Trap:
    """Pickled, it is a call to make a file: what unpickling it would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["file", "timm", "transformers"])
def test_a_pickle_is_never_run(where: str, tmp_path: Path) -> None:
    trap = {"weight": torch.zeros(1), "trap": Trap(tmp_path / "sprung")}
    if where == "file":
        torch.save(trap, tmp_path / "weights.pth")
        load = lambda: load_model("test_vit", weights=tmp_path / "weights.pth")  # noqa: E731
    else:
        saved_timm("vit", tmp_path) if where == "timm" else saved("detr", tmp_path)
        (tmp_path / "model.safetensors").unlink()
        torch.save(trap, tmp_path / "pytorch_model.bin")
        load = lambda: load_model(str(tmp_path))  # noqa: E731
    with pytest.raises(UserError, match=r"holds more than tensors, .* give a \.safetensors file"):
        load()
    assert not (tmp_path / "sprung").exists()


# ---- the user's mistakes


def expect_mistake(message: str, *args: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_model(*args, **options)
    assert "\n" not in str(caught.value)


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
        ("test_resnet", r"models of type 'ResNet' \(timm\) are not staged yet: the types that are: .*detr"),
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
        ("{}", "models of type 'nothing'"),
        ('{"model_type": "bert"}', r"models of type 'bert' \(transformers\) are not staged yet"),
        ('{"architecture": "nose_vit"}', "holds a 'nose_vit', which timm .* does not know"),
        ('{"architecture": "test_vit"}', r"has no weights: it should hold model\.safetensors beside config\.json"),
        ('{"model_type": "detr"}', r"has no weights: it should hold model\.safetensors beside config\.json"),
    ],
)
def test_a_folder_that_is_no_model(config: str | None, message: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    expect_mistake(message, str(tmp_path))


@pytest.mark.parametrize("content", ["broken", "other", "shapes"])
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_folder_with_weights_that_do_not_fit(library: str, content: str, tmp_path: Path) -> None:
    saved_timm("vit", tmp_path) if library == "timm" else saved("detr", tmp_path)
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
    expect_mistake(r"\d+ tensors are missing \(first: .*\), 1 tensors are not of this model \(first: nose", name, weights=path)
    state = load_model(name, random_weights=True).module.state_dict()
    save_file({key: value[:1].clone() if value.dim() else value for key, value in state.items()}, path)
    expect_mistake("are of another model: shapes differ", name, weights=path)  # fmt: skip


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

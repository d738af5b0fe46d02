"""Loading forward models from folders, and what each says of itself: its pixels, layouts, predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import nn

from backsight.core import IMAGE, Classes, Layout, Pixels, UserError
from backsight.engine import StagedModel
from backsight.models import MODELS, duplicate, load_model, stage_module
from backsight.models import timm as timm_models
from backsight.verification import verify
from numerics import assert_rounding
from small import SMALL_TIMM, assert_same_answers, build_small, random_images, save_timm, save_transformers

TRANSFORMERS = [name for name, family in MODELS.items() if family.library == "transformers"]
SIZE = (64, 96)
HALF = (0.5, 0.5, 0.5)


# ---- folders of transformers


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_folder_of_transformers_is_the_model_that_was_saved(name: str, tmp_path: Path) -> None:
    module = save_transformers(name, tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.weights == str(tmp_path)
    assert_same_answers(loaded, stage_module(module, MODELS[name], loaded.pixels, name="original"))


@pytest.mark.parametrize("name", ["detr", "dinov2"])
def test_a_folder_of_transformers_in_an_old_format_loads_too(name: str, tmp_path: Path) -> None:
    module = save_transformers(name, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    loaded = load_model(str(tmp_path))
    assert_same_answers(loaded, stage_module(module, MODELS[name], loaded.pixels, name="original"))


def save_legacy_detr(folder: Path) -> nn.Module:
    """A DETR with timm's backbone, its configuration written as the first checkpoints on the hub have it."""
    from transformers import DetrConfig, DetrForObjectDetection, TimmBackboneConfig

    layers: dict[str, Any] = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    widths: dict[str, Any] = {
        "num_labels": 4,
        "num_queries": 7,
        "d_model": 32,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    backbone: dict[str, Any] = {
        "backbone": "test_resnet",
        "use_pretrained_backbone": False,
        "out_indices": [1, 2, 3, 4],
    }
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
    assert_same_answers(loaded, stage_module(module, MODELS["detr"], loaded.pixels, name="original"))


@pytest.mark.parametrize(
    ("family", "said", "expected"),
    [
        ("detr", None, Pixels((480, 640))),
        ("detr", {"size": {"height": 64, "width": 96}}, Pixels((64, 96))),
        ("detr", {"size": {"shortest_edge": 800}, "resample": 3}, Pixels((480, 640), interpolation="bicubic")),
        (
            "detr",
            {"size": 800, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.1, 0.2, 0.3], "resample": 1},
            Pixels((480, 640), (0.5, 0.5, 0.5), (0.1, 0.2, 0.3), "lanczos"),
        ),
        ("dinov2", {}, Pixels((48, 48))),
        (
            "dinov2",
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3},
            Pixels((224, 224), interpolation="bicubic", fit="crop", crop_fraction=0.875),
        ),
        ("dinov2", {"size": 256, "crop_size": 224}, Pixels((224, 224), fit="crop", crop_fraction=0.875)),
        ("dinov2", {"crop_size": 64}, Pixels((64, 64), fit="crop", crop_fraction=1.0)),
        ("dinov2", {"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, Pixels((48, 48))),
    ],
)
def test_pixels_come_from_the_preprocessor(
    family: str, said: dict[str, Any] | None, expected: Pixels, tmp_path: Path
) -> None:
    save_transformers(family, tmp_path)
    if said is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert load_model(str(tmp_path)).pixels == expected
    resized = load_model(str(tmp_path), size=(64, 96) if family == "detr" else (32, 40)).pixels
    assert resized == replace(expected, size=resized.size)


# ---- folders of timm


@pytest.mark.parametrize("name", SMALL_TIMM)
def test_a_folder_of_timm_is_the_model_that_was_saved(name: str, tmp_path: Path) -> None:
    module = save_timm(name, tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.spec.family == name
    assert loaded.weights == str(tmp_path)
    original = stage_module(module, MODELS[name], timm_models.pixels(module, None), name="original")
    assert_same_answers(loaded, original)
    assert isinstance(loaded.predict(loaded.run(random_images(loaded))), Classes)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("vit_base_patch16_224", Pixels((224, 224), HALF, HALF, "bicubic", "crop", 0.9)),
        ("deit_base_patch16_224", Pixels((224, 224), interpolation="bicubic", fit="crop", crop_fraction=0.9)),
        ("swin_base_patch4_window7_224", Pixels((224, 224), interpolation="bicubic", fit="crop", crop_fraction=0.9)),
        ("vit_base_patch14_reg4_dinov2", Pixels((518, 518), interpolation="bicubic", fit="crop", crop_fraction=1.0)),
    ],
)
def test_pixels_come_from_timm_s_data_configuration(architecture: str, expected: Pixels) -> None:
    with torch.device("meta"):
        module = timm.create_model(architecture)
    assert timm_models.pixels(module, None) == expected


@pytest.mark.parametrize(("name", "patch"), [("vit", 16), ("eva", 14)])
def test_another_size_resamples_the_position_embedding(name: str, patch: int, tmp_path: Path) -> None:
    module: Any = save_timm(name, tmp_path)
    size = (6 * patch, 8 * patch)
    model = load_model(str(tmp_path), size=size)
    assert model.pixels.size == size
    assert model.layout("backbone").grid == (6, 8)
    resized: Any = model.module
    expected = resample_abs_pos_embed(module.pos_embed.detach(), [6, 8], num_prefix_tokens=1)
    assert resized.pos_embed.shape == (1, 49, module.pos_embed.shape[2])
    torch.testing.assert_close(resized.pos_embed, expected)
    assert torch.equal(resized.pos_embed[:, 0], module.pos_embed[:, 0])  # the class token has no place
    assert [check.name for check in verify(model) if not check.passed] == []
    with pytest.raises(UserError, match=rf"cannot take images of 97x128 pixels: its patches are {patch}x{patch}"):
        load_model(str(tmp_path), size=(97, 128))


def test_a_detr_takes_any_size(tmp_path: Path) -> None:
    save_transformers("detr", tmp_path)
    assert load_model(str(tmp_path), size=(97, 70)).layout("backbone").grid == (4, 3)
    assert load_model(str(tmp_path)).layout("encoder").grid == (15, 20)


# ---- what a staged model says of itself


def test_a_layout_says_what_the_features_are(model: StagedModel) -> None:
    trace = model.run(random_images(model))
    assert model.layout(IMAGE) == Layout.of_image(model.pixels.size)
    for name in model.names:
        layout = model.layout(name)
        assert trace[name].shape[1:] == (layout.tokens, layout.width)
        if model.stage_of(name).gridded:
            assert layout.tokens == layout.prefix + sum(h * w for h, w in layout.grids)
        else:
            assert layout.grids == ()


@pytest.mark.parametrize("family", ["vit", "detr"])
def test_a_digest_tells_weights_apart(family: str) -> None:
    digest = build_small(family).digest()
    assert build_small(family).digest() == digest != build_small(family, seed=1).digest()


def test_a_duplicate_is_the_same_with_weights_of_its_own(model: StagedModel) -> None:
    copy = duplicate(model)
    images = random_images(model)
    assert_same_answers(copy, model)
    assert (copy.spec, copy.name, copy.weights) == (model.spec, model.name, model.weights)
    answers: list[Any] = [each.predict(each.run(images)) for each in (copy, model)]
    for one, other in zip(*(each if isinstance(each, list) else [each] for each in answers), strict=True):
        assert_rounding(vars(one), vars(other), 1e-4)
    shared = {value.data_ptr() for value in model.module.state_dict().values() if value.numel()}
    assert shared.isdisjoint(value.data_ptr() for value in copy.module.state_dict().values())
    assert copy.constants.keys() == model.constants.keys()
    assert shared.isdisjoint(value.data_ptr() for value in copy.constants.values())


def test_layers_are_on_the_way_to_their_stage(model: StagedModel) -> None:
    trace = model.run(random_images(model))
    for stage in model.spec.stages:
        places = [trace.raw[f"{stage.name}.{index}"].order for index in range(len(stage.layers))]
        assert places == sorted(set(places))
        assert all(place <= trace.raw[stage.name].order for place in places)


def test_predictions_are_in_their_ranges(model: StagedModel) -> None:
    prediction = model.predict(model.run(random_images(model)))
    if isinstance(prediction, Classes):
        assert model.spec.task == "classify"
        assert prediction.logits.shape[0] == len(prediction.top()) == 2
        return
    assert model.spec.task == "detect"
    assert len(prediction) == 2
    for each in prediction:
        assert each.boxes.shape == (len(each.scores), 4)
        assert 0 <= each.scores.min() <= each.scores.max() <= 1
        assert (each.boxes[:, :2] <= each.boxes[:, 2:]).all()
        kept = each.above(float(each.scores.median()))
        assert 0 < len(kept.scores) < len(each.scores) or len(set(each.scores.tolist())) == 1

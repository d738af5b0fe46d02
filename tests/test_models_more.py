"""Classifiers and feature models beside timm's ViT: sizes, preprocessors, bare models, the library's own features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from backsight.catalogue import list_models
from backsight.cli.inspection import model_lines
from backsight.core import Layout, Pixels, UserError
from backsight.engine import StagedModel
from backsight.inverses import build_inverse
from backsight.models import MODELS, blueprint, load_model
from backsight.models import transformers as transformers_models
from backsight.tasks import Modular, build_chains, make_plans
from backsight.verification import verify
from marks import quick
from numerics import assert_rounding, assert_same_weights
from small import SEED, build_small, random_images, save_transformers

PATCHES = ["vit-transformers", "dinov2", "dinov2_with_registers"]
PARAMETERS = {
    "vit-base-patch16-224": 86_567_656,
    "dino-vitb16": 85_798_656,
    "dinov2-base": 86_580_480,
    "dinov2-with-registers-base": 86_583_552,
    "eva02_base_patch14_224": 85_758_720,
    "vit_base_patch16_dinov3": 85_641_216,
    "resnet50": 25_557_032,
    "convnext_tiny": 28_589_128,
}
"""Well-known models -> their number of parameters."""


# ---- sizes


@pytest.mark.parametrize("family", PATCHES)
def test_another_size_interpolates_the_position_embedding(family: str, tmp_path: Path) -> None:
    module: Any = save_transformers(family, tmp_path)
    own = load_model(str(tmp_path))
    assert own.pixels.size == (48, 48), "the size that the position embedding is made for"
    model = load_model(str(tmp_path), size=(32, 72))
    assert model.layout("encoder").grid == (4, 9)
    images = random_images(model)
    trace = model.run(images)
    options = {"interpolate_pos_encoding": True} if family == "vit-transformers" else {}
    with torch.no_grad():
        expected = module.eval()(model.pixels.normalise(images), **options)
    assert torch.equal(trace.output.logits, expected.logits)
    assert all(check.passed for check in verify(model))
    with pytest.raises(UserError, match=r"cannot take images of 33x72 pixels: its patches are 8x8, give multiples"):
        load_model(str(tmp_path), size=(33, 72))


def test_at_its_own_size_nothing_is_interpolated(small_model: Callable[[str], StagedModel]) -> None:
    model = small_model("vit-transformers")
    images = random_images(model)
    with torch.no_grad():
        expected = model.module(model.pixels.normalise(images)).logits
    assert torch.equal(model.run(images).output.logits, expected)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext"])
def test_a_convolutional_network_takes_any_size(architecture: str) -> None:
    for size in ((64, 64), (97, 70), (33, 130)):
        model = load_model(architecture, random_weights=True, size=size)
        assert model.pixels.size == size
        plans = make_plans(model)
        (chain,) = build_chains(model, plans, [0])
        trace = model.run(random_images(model, 1))
        assert chain.eval().reconstruct(trace, "stage4").shape == (1, 3, *size)


def test_rotary_positions_follow_the_size() -> None:
    options: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 3}
    torch.manual_seed(SEED)
    rotary = {"use_rot_pos_emb": True, "rope_type": "dinov3", "use_abs_pos_emb": False}
    from timm.models.eva import Eva

    from backsight.models import stage_module
    from backsight.models import timm as timm_models

    one, other = (Eva(img_size=size, patch_size=8, **options, **rotary) for size in (48, (32, 64)))
    other.load_state_dict(one.state_dict())
    one.set_input_size((32, 64))
    models = [
        stage_module(each, MODELS["eva"], timm_models.pixels(each, (32, 64)), name="eva") for each in (one, other)
    ]
    outputs = [model.run(random_images(model)).output for model in models]
    assert_rounding(*outputs)
    assert models[0].layout("backbone").grid == (4, 8)


# ---- the library's own features


@pytest.mark.parametrize("family", ["resnet", "convnext"])
def test_stages_are_the_library_s_own_cuts(family: str, small_model: Callable[[str], StagedModel]) -> None:
    model = small_model(family)
    images = random_images(model)
    trace, module = model.run(images), model.module
    expected: Any = module.forward_intermediates(model.pixels.normalise(images), intermediates_only=True)  # type: ignore[operator]
    stages = model.stages[-len(expected) :]
    assert model.stages == ["backbone", "stage1", "stage2", "stage3", "stage4"]
    for name, maps in zip(stages, expected, strict=True):
        assert torch.equal(trace[name], maps.flatten(2).mT)
        assert model.layout(name).grid == maps.shape[2:]


def test_eva_s_layers_are_the_library_s_own(small_model: Callable[[str], StagedModel]) -> None:
    model = small_model("eva")
    images = random_images(model)
    trace, module = model.run(images), model.module
    options = {"return_prefix_tokens": True, "output_fmt": "NLC", "intermediates_only": True}
    expected: Any = module.forward_intermediates(model.pixels.normalise(images), **options)  # type: ignore[operator]
    assert model.layout("encoder").prefix == 3
    for index, (patches, prefix) in enumerate(expected):
        assert torch.equal(trace[f"encoder.{index}"], torch.cat([prefix, patches], 1))


@pytest.mark.parametrize("family", PATCHES)
def test_layers_are_the_library_s_hidden_states(family: str, small_model: Callable[[str], StagedModel]) -> None:
    model = small_model(family)
    images = random_images(model)
    trace = model.run(images)
    with torch.no_grad():
        hidden = model.module(model.pixels.normalise(images), output_hidden_states=True).hidden_states
    assert torch.equal(trace["backbone"], hidden[0])
    for index in range(3):
        assert torch.equal(trace[f"encoder.{index}"], hidden[index + 1])


def test_no_analytic_inverse_is_offered_behind_a_norm() -> None:
    from timm.models.vision_transformer import VisionTransformer

    options: dict[str, Any] = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    for norm, expected in ((False, {"projection", "bias", "position"}), (True, set())):
        module = VisionTransformer(**options, pre_norm=norm)
        assert set(MODELS["vit"].constants(module)) == expected


# ---- bare models


@pytest.mark.parametrize("pooler", [True, False])
def test_a_bare_vit_is_the_same_every_time(pooler: bool, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    sizes: dict[str, Any] = {"image_size": 48, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    config = ViTConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)
    ViTModel(config, add_pooling_layer=pooler).save_pretrained(tmp_path)
    one, other = load_model(str(tmp_path)), load_model(str(tmp_path))
    assert one.digest() == other.digest()
    assert one.spec.task == "features"
    assert all(check.passed for check in verify(one))
    with pytest.raises(UserError, match="predicts nothing: it is staged for its features only"):
        one.predict(one.run(random_images(one)))


@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers"])
def test_a_bare_dinov2_gives_features(family: str, tmp_path: Path) -> None:
    module: Any = MODELS[family].small()
    module.base_model.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert model.spec.task == "features"
    assert model.layout("encoder").prefix == (1 if family == "dinov2" else 1 + module.config.num_register_tokens)
    assert [check.name for check in verify(model) if not check.passed] == []


@pytest.mark.parametrize("family", ["resnet", "convnext"])
def test_a_folder_of_a_convolutional_network_is_the_model(family: str, tmp_path: Path) -> None:
    from timm.models import save_for_hf

    torch.manual_seed(SEED)
    module = timm.create_model(f"test_{family}", num_classes=0)
    save_for_hf(module, str(tmp_path), model_args={"num_classes": 0}, safe_serialization=True)
    model = load_model(str(tmp_path), size=(40, 72))
    assert (model.spec.family, model.spec.task, model.pixels.size) == (family, "features", (40, 72))
    assert_same_weights(model.module, module)


# ---- what preprocessors say


def test_known_names_have_the_pixels_of_the_hub() -> None:
    vit, dinov2 = MODELS["vit-transformers"], MODELS["dinov2"]
    for family, name, expected in (
        (vit, "vit-base-patch16-224", Pixels((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
        (vit, "dino-vitb16", Pixels((224, 224))),
        (dinov2, "dinov2-base", Pixels((224, 224), interpolation="bicubic", fit="crop", crop_fraction=0.875)),
    ):
        module = blueprint(family, name)
        assert transformers_models.pixels(module, family.preprocess.get(name, {}), None, family.size) == expected


# ---- true size


def test_the_list_of_models_says_what_each_is() -> None:
    rows = {row["model"]: row for row in list_models()}
    assert {row["family"] for row in rows.values()} == set(MODELS)
    for name, parameters in PARAMETERS.items():
        assert rows[name]["parameters"] == parameters
        assert "on the hub" in rows[name]["needs"]
    assert rows["resnet50"]["stages"] == {"backbone": 0, "stage1": 3, "stage2": 4, "stage3": 6, "stage4": 3}
    assert rows["vit_base_patch16_224"]["inverses"] == {"backbone": ["patch"], "encoder": ["blocks"]}
    assert rows["dinov2-base"]["task"] == "features"
    assert rows["zoo/vit-prior"]["needs"].startswith("nothing")
    lines = model_lines(rows.values())
    assert max(map(len, lines)) <= 100
    assert "resnet (timm)  backbone to stage4: residual" in lines
    assert ["resnet50", "25.6", "M", "3", "+", "4", "+", "6", "+", "3", "layers", "weights"] in map(str.split, lines)
    assert ["zoo/vit-prior", "1.3", "M", "6", "layers", "nothing"] in map(str.split, lines)


def test_a_library_that_cannot_build_without_memory_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> nn.Module:
        raise NotImplementedError

    monkeypatch.setattr("backsight.models.transformers.build", fail)
    monkeypatch.setattr("backsight.catalogue.MODELS", {"detr": MODELS["detr"], "resnet": MODELS["resnet"]})
    monkeypatch.setattr("backsight.catalogue.shipped_names", list)
    rows = {row["model"]: row for row in list_models()}
    assert rows["detr-resnet-50"]["parameters"] is None
    assert rows["resnet18"]["parameters"] == 11_689_512
    assert ["detr-resnet-50", "weights"] in map(str.split, model_lines(rows.values()))


# ---- the inverse of a convolutional stage


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(0, 1), st.integers(0, 1))
def test_a_residual_inverse_reaches_any_finer_grid(h: int, w: int, halvings: int, up: int, right: int) -> None:
    fine = (h * 2**halvings + up * (halvings > 0), w * 2**halvings + right * (halvings > 0))
    source, target = Layout(h * w, 6, ((h, w),)), Layout(fine[0] * fine[1], 4, (fine,))
    inverse = build_inverse("residual", source, target, {"depth": 0}).eval()
    features = torch.randn(1, source.tokens, 6)
    assert inverse(features).shape == (1, target.tokens, 4)
    image = build_inverse("residual", source, Layout.of_image(fine), {"depth": 0}).eval()
    assert image(features).shape == (1, 3, *fine)
    grids: list[Any] = [each.size for each in inverse.modules() if isinstance(each, nn.Upsample)]
    for coarse, finer in zip([(h, w), *grids], grids, strict=False):
        assert all(own <= other <= 3 * own for own, other in zip(coarse, finer, strict=True))


def test_a_residual_inverse_leaves_prefix_tokens_out_and_makes_none() -> None:
    source, target = Layout(13, 8, ((3, 4),), 1), Layout(48, 4, ((6, 8),))
    inverse = build_inverse("residual", source, target, {}).eval()
    features = torch.randn(1, 13, 8)
    edited = features.clone()
    edited[:, 0] += 1
    assert torch.equal(inverse(features), inverse(edited))
    with pytest.raises(UserError, match="its target has tokens before the grid"):
        build_inverse("residual", target, source, {})
    with pytest.raises(UserError, match=r"its target's \(3, 4\) is coarser than its own \(6, 8\)"):
        build_inverse("residual", target, Layout(12, 8, ((3, 4),)), {})


@pytest.mark.parametrize("family", quick(["resnet", "convnext"], "convnext"))
def test_every_stage_of_a_convolutional_network_learns(family: str) -> None:
    model = build_small(family)
    (chain,) = build_chains(model, make_plans(model), [0])
    task = Modular(model, [chain.train()])
    optimiser = torch.optim.Adam(chain.parameters(), 3e-3)
    images = nn.functional.interpolate(torch.rand(4, 3, 4, 4), model.pixels.size, mode="bilinear")
    history = []
    for _ in range(12):
        losses = {str(key): loss for key, loss, _ in task.losses(images)}
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    assert list(history[0]) == [f"0/{name}" for name in model.stages]
    kept = {name: history[-1][name] / history[0][name] for name in history[0]}
    assert all(share < 0.9 for share in kept.values()), kept


# ---- specs


def test_a_spec_goes_before_what_is_known_of_a_model() -> None:
    last = {"name": "last", "site": {"path": "layer4", "pattern": "b d h w"}, "inverse": "residual"}
    model = load_model("test_resnet", random_weights=True, spec={"pixels": {"size": [64, 64]}, "stages": [last]})
    assert model.stages == ["last"]
    assert model.reopen["named"]

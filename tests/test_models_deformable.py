"""Deformable DETR: its three variants, its levels, and what its heads read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backsight.arrange import infer_grids
from backsight.core import Pixels, Site, Spec, Stage
from backsight.engine import RANDOM, StagedModel
from backsight.models import MODELS, load_model, stage_module
from backsight.models.deformable_detr import DEFORMABLE_DETR, small
from backsight.tasks import make_plans
from backsight.verification import scramble, verify
from small import assert_same_answers, random_images, save_transformers

VARIANTS: dict[str, dict[str, bool]] = {
    "plain": {},
    "box refine": {"with_box_refine": True},
    "two stages": {"with_box_refine": True, "two_stage": True},
}


def build(variant: str = "plain", size: tuple[int, int] = (64, 96)) -> StagedModel:
    torch.manual_seed(0)
    module = small(**VARIANTS[variant])
    scramble(module, torch.Generator().manual_seed(0))
    return stage_module(module, DEFORMABLE_DETR, Pixels(size), name=variant, weights=RANDOM)


@pytest.mark.parametrize(("variant", "size"), [("plain", (64, 96)), *((name, (77, 101)) for name in VARIANTS)])
def test_every_site_of_every_variant_holds(variant: str, size: tuple[int, int]) -> None:
    model = build(variant, size)
    assert [check.name for check in verify(model, batch_size=2) if not check.passed] == []


def test_the_decoder_s_own_field_is_read_by_no_head() -> None:
    sites = (Site("model.decoder", field="last_hidden_state"),)
    stage = Stage("decoder", sites, gridded=False)
    model = StagedModel(build().module, Spec("x", "detect", (stage,)), Pixels((64, 96)), name="x")
    (check,) = verify(model)
    assert check.results == (True, False, False, True), "it is a copy, handed out beside the answer"


@pytest.mark.parametrize("size", [(64, 96), (77, 101), (96, 96)])
def test_the_backbone_is_the_projected_maps_of_all_levels(size: tuple[int, int]) -> None:
    model = build(size=size)
    module: Any = model.module
    maps: list[torch.Tensor] = []
    hooks = [each.register_forward_hook(lambda _, __, out: maps.append(out)) for each in module.model.input_proj]
    trace = model.run(random_images(model))
    for hook in hooks:
        hook.remove()
    assert torch.equal(trace["backbone"], torch.cat([level.flatten(2).mT for level in maps], 1))
    for name in ("backbone", "encoder", "encoder.0"):
        assert model.layout(name).grids == tuple((level.shape[2], level.shape[3]) for level in maps)


@pytest.mark.parametrize(("levels", "stride"), [(4, 8), (3, 8), (2, 8), (2, 16)])
def test_the_grids_of_rounded_up_levels_are_found_at_any_size(levels: int, stride: int) -> None:
    for height in range(48, 400, 17):
        for width in range(48, 400, 13):
            grids = tuple((-(-height // (stride << i)), -(-width // (stride << i))) for i in range(levels))
            tokens = sum(h * w for h, w in grids)
            assert infer_grids(None, "b n d", tokens, (height, width), levels) == grids


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_heads_read_the_decoder_s_last_layer(variant: str) -> None:
    model = build(variant)
    module: Any = model.module
    trace = model.run(random_images(model))
    # In two stages there is one head more, for the proposals: the last.
    logits = module.class_embed[1](trace["decoder"])
    torch.testing.assert_close(trace["prediction"][..., :4], logits)
    assert torch.equal(trace["decoder"], trace["decoder.1"])
    assert 0 < trace["prediction"][..., 4:].min() <= trace["prediction"][..., 4:].max() < 1


def test_inverses_are_sized_after_the_model() -> None:
    plans = make_plans(build())
    sizes = {"depth": 2, "heads": 2, "feedforward": 48, "points": 2}
    assert {entry: (plan.inverse, dict(plan.options)) for entry, plan in plans.items()} == {
        "backbone": ("pyramid", {}),
        "encoder": ("deformable_encoder", sizes),
        "decoder": ("deformable_decoder", sizes),
        "prediction": ("prediction", {}),
        "prediction@onehot": ("prediction", {"onehot": True}),
    }
    layout = build().layout("prediction")
    assert (layout.classes, layout.scores) == (4, "sigmoid")


def test_the_zoo_s_detector_is_staged() -> None:
    from recipes.detector import PIXELS, build_detector, freeze_batch_norm
    from recipes.recipe import find_recipe

    torch.manual_seed(0)
    module: nn.Module = freeze_batch_norm(build_detector(find_recipe("deformable-detr-prior")))
    model = stage_module(module, DEFORMABLE_DETR, PIXELS, name="untrained", weights=RANDOM)
    assert [check.name for check in verify(model) if not check.passed] == []
    assert model.layout("encoder").grids == ((12, 12), (6, 6))


# ---- loading


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_comes_back_from_its_folder(variant: str, tmp_path: Path) -> None:
    original = build(variant)
    module: Any = original.module
    module.save_pretrained(tmp_path)
    assert_same_answers(load_model(str(tmp_path), size=(64, 96)), original)


def test_the_size_is_detr_s_where_the_folder_names_none(tmp_path: Path) -> None:
    save_transformers("deformable_detr", tmp_path)
    assert load_model(str(tmp_path)).pixels.size == (480, 640)


def test_names_and_configurations_belong_together() -> None:
    family = MODELS["deformable_detr"]
    assert family.names.keys() == family.configure.keys()
    for short, hub_name in family.names.items():
        assert hub_name == f"SenseTime/{short}"
        given = family.configure[short]
        assert bool(given.get("with_box_refine")) == ("refine" in short)
        assert bool(given.get("two_stage")) == ("two-stage" in short)


# ---- training

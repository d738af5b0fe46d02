"""The detectors of transformers beside DETR and Deformable DETR: what each does in its own way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backsight.catalogue import list_stages
from backsight.core import Pixels, Site, UserError
from backsight.engine import RANDOM, StagedModel
from backsight.inverses import build_inverse
from backsight.models import MODELS, Family, lw_detr, rt_detr, stage_module
from backsight.models import transformers as transformers_models
from backsight.models.spec import read_spec
from backsight.tasks import make_plans
from backsight.verification import scramble, verify
from small import build_small, random_images

SOFTMAX = ("table_transformer", "yolos")
SIGMOID = ("conditional_detr", "dab_detr", "rt_detr", "rt_detr_v2", "d_fine", "lw_detr", "rf_detr")
DETECTORS = (*SOFTMAX, *SIGMOID)


def staged(module: nn.Module, family: Family, size: tuple[int, int]) -> StagedModel:
    scramble(module, torch.Generator().manual_seed(0))
    return stage_module(module, family, Pixels(size), name="small", weights=RANDOM)


def outputs_of(model: StagedModel, path: str, images: Tensor) -> Any:
    """What the submodule at ``path`` gives in a plain forward of the library."""
    seen: list[Any] = []
    module = model.module.get_submodule(path)
    hook = module.register_forward_hook(lambda _, __, output: seen.append(output))
    model.module(model.pixels.normalise(images))
    hook.remove()
    return seen[0]


def failures(model: StagedModel) -> list[str]:
    return [check.name for check in verify(model) if not check.passed]


# ---- all of them


@pytest.mark.parametrize("name", DETECTORS)
def test_the_stages_are_the_paper_s_and_the_last_before_the_prediction_is_its_queries(name: str) -> None:
    model = build_small(name)
    assert model.stages == ["backbone", "encoder", "decoder", "prediction"]
    assert model.layout("decoder").tokens == model.layout("prediction").tokens == 7
    assert model.layout("decoder").grids == model.layout("prediction").grids == ()
    assert model.spec.family == name


@pytest.mark.parametrize("name", [*SIGMOID, "deformable_detr"])
def test_detections_are_the_best_pairs_of_query_and_class(name: str) -> None:
    model = build_small(name)
    trace = model.run(random_images(model))
    logits, boxes = trace["prediction"].split([4, 4], -1)
    layout = model.layout("prediction")
    assert (layout.classes, layout.scores) == (4, "sigmoid")
    found: Any = model.predict(trace)
    height, width = model.pixels.size
    x, y, w, h = boxes.unbind(-1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1) * torch.tensor([width, height] * 2)
    for image, each in enumerate(found):
        scores = logits[image].sigmoid()
        count = len(each.scores)
        assert count in (7, 28), "as many as there are queries, or all pairs up to 100"
        torch.testing.assert_close(each.scores, scores.flatten().sort(descending=True).values[:count])
        # Queries may be as good as each other, so each detection is looked for among all pairs.
        for box, score, label in zip(each.boxes, each.scores, each.classes, strict=True):
            far = (corners[image] - box).abs().amax(-1) + (scores[:, label] - score).abs()
            assert far.min() < 1e-4


@pytest.mark.parametrize("name", DETECTORS)
def test_names_have_configurations_and_sizes_that_their_models_take(name: str) -> None:
    family = MODELS[name]
    assert family.names.keys() == family.configure.keys()
    for short, hub_name in family.names.items():
        assert hub_name.count("/") == 1
        with torch.device("meta"):
            module = transformers_models.build(family.kind, family.configure[short])
        pixels = transformers_models.pixels(module, family.preprocess.get(short, {}), None, family.size)
        if family.check_size is not None:
            family.check_size(module, pixels.size)
        assert len(family.stage(module).stages) == 4


# ---- images that they do not take


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("rt_detr_v2", (97, 128), "multiples of 32"),
        ("d_fine", (96, 100), "multiples of 32"),
        ("lw_detr", (64, 80), "multiples of 32"),
        ("rf_detr", (56, 84), "the same multiple of 28 for both sides"),
        ("yolos", (50, 64), "multiples of these"),
    ],
)
def test_a_wrong_size_is_told_in_one_line(name: str, size: tuple[int, int], message: str) -> None:
    module = MODELS[name].small()
    with pytest.raises(UserError, match=message) as caught:
        staged(module, MODELS[name], transformers_models.pixels(module, {}, size, size).size)
    assert f"{size[0]}x{size[1]}" in str(caught.value)


def many_queries(name: str, count: int) -> nn.Module:
    module: Any = MODELS[name].small()
    module.config.num_queries = module.config.two_stage_num_proposals = count
    module.config.two_stage = True
    return module


@pytest.mark.parametrize(
    ("name", "size", "tokens", "enough"),
    [
        ("rt_detr_v2", (96, 128), 252, 128),
        ("d_fine", (96, 128), 252, 128),
        ("lw_detr", (256, 256), 256, 288),
        ("rf_detr", (224, 224), 256, 252),
        ("deformable_detr", (64, 96), 128, 128),
    ],
)
def test_an_image_with_too_few_tokens_is_told_and_what_would_do_does(
    name: str, size: tuple[int, int], tokens: int, enough: int
) -> None:
    module, family = many_queries(name, 300), MODELS[name]
    with pytest.raises(UserError, match=f"have {tokens}: {enough}x{enough} would do"):
        family.check_size(module, size)
    family.check_size(module, (enough, enough))


def test_the_tokens_counted_are_those_of_the_model() -> None:
    for name in ("rt_detr_v2", "d_fine", "lw_detr", "rf_detr"):
        model = build_small(name)
        tokens = model.layout("encoder").tokens
        MODELS[name].check_size(many_queries(name, tokens), model.pixels.size)
        with pytest.raises(UserError, match=f"have {tokens}:"):
            MODELS[name].check_size(many_queries(name, tokens + 1), model.pixels.size)


# ---- RT-DETRv2 and D-FINE


@pytest.mark.parametrize("name", ["rt_detr_v2", "d_fine"])
def test_every_layer_of_a_hybrid_encoder_is_all_of_its_maps(name: str) -> None:
    model = build_small(name)
    module: Any = model.module
    assert len(module.model.encoder.aifi) == 1
    images = random_images(model)
    trace = model.run(images)
    maps = [outputs_of(model, f"model.encoder_input_proj.{level}", images) for level in range(3)]
    assert torch.equal(trace["backbone"], torch.cat([each.flatten(2).mT for each in maps], 1))
    steps: list[dict[int, str]] = [
        {2: "aifi.0"},
        {2: "lateral_convs.0", 1: "fpn_blocks.0"},
        {1: "lateral_convs.1", 0: "fpn_blocks.1"},
        {1: "pan_blocks.0"},
        {2: "pan_blocks.1"},
    ]
    for number, step in enumerate(steps):
        for level, path in step.items():
            maps[level] = outputs_of(model, f"model.encoder.{path}", images)
        assert torch.equal(trace[f"encoder.{number}"], torch.cat([each.flatten(2).mT for each in maps], 1))
        assert model.layout(f"encoder.{number}") == model.layout("encoder"), "what its inverse reads"
    encoded = outputs_of(model, "model.encoder", images).last_hidden_state
    assert torch.equal(trace["encoder"], torch.cat([each.flatten(2).mT for each in encoded], 1))


@pytest.mark.parametrize("name", ["rt_detr_v2", "d_fine"])
def test_what_follows_a_layer_follows_from_it_alone(name: str) -> None:
    """The rest of the pass is the same, whichever images the trace was of: an encoder's layers are cuts."""
    model = build_small(name)
    trace, other = (model.run(random_images(model, seed=seed)) for seed in (0, 1))
    for at in [each for each in model.names if each.startswith(("backbone", "encoder"))]:
        found = model.resume(at, trace[at], other)
        for later in ("encoder", "decoder", "prediction"):
            assert torch.equal(found[later], trace[later]), (at, later)


def test_points_that_differ_by_level_are_averaged() -> None:
    module: Any = MODELS["d_fine"].small()
    module.config.decoder_n_points = [3, 6, 3]
    assert MODELS["d_fine"].stage(module).stage("decoder").inverses[""][1]["points"] == 4


def test_images_that_the_library_does_not_normalise_keep_their_values() -> None:
    module = MODELS["rt_detr_v2"].small()
    said = {"do_normalize": False, "image_mean": [0.485, 0.456, 0.406], "size": {"height": 640, "width": 640}}
    pixels = transformers_models.pixels(module, said, None, (1, 1))
    assert pixels == Pixels((640, 640), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert pixels == transformers_models.pixels(module, rt_detr.PREPROCESS, None, (1, 1))


def test_the_sites_of_a_cut_are_told_in_short() -> None:
    sites = {row["stage"]: row["site"] for row in list_stages(build_small("rt_detr_v2"))}
    assert sites["backbone"] == "model.encoder_input_proj: 0, 1, 2 output"
    assert sites["encoder.0"] == "model: encoder_input_proj.0, encoder_input_proj.1, encoder.aifi.0 output"
    assert sites["encoder"] == "model.encoder: fpn_blocks.1, pan_blocks.0, pan_blocks.1 output"
    assert sites["decoder"] == "model.decoder.layers.1 output"
    assert sites["prediction"] == "the model output [logits, pred_boxes]"


# ---- YOLOS


def test_detection_tokens_come_first_and_the_grid_last() -> None:
    model = build_small("yolos")
    images = random_images(model)
    trace = model.run(images)
    row = outputs_of(model, "vit.embeddings", images)
    assert row.shape == (2, 1 + 48 + 7, 32)
    assert torch.equal(trace["backbone"], torch.cat([row[:, -7:], row[:, :1], row[:, 1:-7]], 1))
    assert torch.equal(trace["decoder"], outputs_of(model, "vit.layernorm", images)[:, -7:])
    assert (model.layout("encoder").prefix, model.layout("encoder").grid) == (8, (6, 8))


def test_a_spec_of_one_s_own_says_the_order_of_tokens_too() -> None:
    site = {"path": "blocks.1", "tokens": [[-7, None], [None, -7]]}
    given = {"pixels": {"size": [48, 64]}, "stages": [{"name": "encoder", "site": site, "layers": ["blocks.0"]}]}
    (encoder,) = read_spec(given).spec.stages
    parts = ((-7, None), (None, -7))
    assert encoder.sites == (Site("blocks.1", tokens=parts),)
    assert encoder.layers == (Site("blocks.0", tokens=parts),)


def test_the_image_is_painted_from_the_grid_alone() -> None:
    model = build_small("yolos")
    inverse = build_inverse("patch", model.layout("backbone"), model.layout("image"), {}).eval()
    features = model.run(random_images(model))["backbone"]
    changed = features.clone()
    changed[:, :8] += 1
    assert torch.equal(inverse(features), inverse(changed))


def test_what_the_heads_do_not_read_is_no_part_of_the_decoder() -> None:
    model = build_small("yolos")
    trace = model.run(random_images(model))
    module: Any = model.module
    edited = model.resume("decoder", trace["decoder"] + 1, trace)
    torch.testing.assert_close(edited.output.logits, module.class_labels_classifier(trace["decoder"] + 1))
    rest = edited.output.last_hidden_state[:, :-7]
    assert torch.equal(rest, trace.output.last_hidden_state[:, :-7])


def test_the_position_embedding_is_made_for_whole_patches() -> None:
    module: Any = MODELS["yolos"].small()
    module.config.image_size = [800, 1333]
    module.config.patch_size = 16
    assert transformers_models.own_size(module) == (800, 1328)


# ---- LW-DETR and RF-DETR


@pytest.mark.parametrize("scales", [(1.0,), (2.0, 0.5)])
def test_every_site_of_lw_detr_holds_with_one_map_and_with_two(scales: tuple[float, ...]) -> None:
    model = staged(lw_detr.small(scales), MODELS["lw_detr"], (64, 96))
    assert failures(model) == []
    assert model.layout("encoder").grids == tuple((int(4 * scale), int(6 * scale)) for scale in scales)
    plan = make_plans(model)["encoder"]
    assert plan.inverse == ("blocks" if len(scales) == 1 else "deformable_encoder")
    inverse = build_inverse(plan.inverse, model.layout("encoder"), model.layout("backbone"), plan.options)
    assert inverse(model.run(random_images(model))["encoder"]).shape == (2, 24, 24)


@pytest.mark.parametrize(("name", "size"), [("lw_detr", (64, 96)), ("lw_detr", (96, 64)), ("rf_detr", (84, 84))])
def test_tokens_in_windows_come_row_by_row(name: str, size: tuple[int, int]) -> None:
    """A change of one patch moves one token, in the embedding and through a layer without attention."""
    model = build_small(name, size=size)
    module: Any = model.module
    layer = module.model.backbone.backbone.encoder.layer[0]
    for parameter in layer.attention.parameters():
        parameter.data.zero_()
    images = random_images(model)
    (h, w), changed = model.layout("backbone").grid, images.clone()
    patch = size[0] // h
    for row, column in ((0, 0), (1, w - 1), (h - 1, 2)):
        changed = images.clone()
        changed[..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] += 0.5
        before, after = model.run(images, "encoder.0"), model.run(changed, "encoder.0")
        for at in ("backbone", "encoder.0"):
            moved = (before[at] != after[at]).any(-1)
            assert moved.nonzero().tolist() == [[image, row * w + column] for image in range(2)]


@pytest.mark.parametrize("name", ["lw_detr", "rf_detr"])
def test_layers_that_the_projector_does_not_read_are_left_out(name: str) -> None:
    module: Any = MODELS[name].small()
    module.config.backbone_config.out_indices = [1, 2]
    assert len(MODELS[name].stage(module).stage("encoder").layers) == 2


def test_class_tokens_of_windows_are_left_as_they_are() -> None:
    model = build_small("rf_detr")
    trace = model.run(random_images(model))
    (site,) = model.sites("encoder.1")
    assert site == Site("model.backbone.backbone.encoder.layer.1", tokens=((1, None),), windows=2)
    (native,) = trace.raw["encoder.1"].value
    assert native.shape == (2 * 4, 1 + 9, 24)
    edited = model.resume("encoder.1", trace["encoder.1"] + 1, trace)
    (after,) = edited.raw["encoder.1"].value
    assert torch.equal(after[:, 0], native[:, 0])
    torch.testing.assert_close(after[:, 1:], native[:, 1:] + 1)


# ---- Grounding DINO


def test_grounding_dino_reads_an_empty_text_or_the_one_that_it_is_given() -> None:
    model = build_small("grounding_dino")
    images = random_images(model)
    empty = model.run(images)
    assert model.arguments["input_ids"].tolist() == [[0, 0]]
    model.arguments["input_ids"] = torch.tensor([[0, 7, 5, 0]])
    told = model.run(images)
    assert torch.equal(told["backbone"], empty["backbone"])
    assert not torch.equal(told["encoder"], empty["encoder"])
    expected = model.module(model.pixels.normalise(images), torch.tensor([[0, 7, 5, 0]] * 2))
    found: Any = model.predict(told)
    for index, each in enumerate(found):
        scores = expected.logits[index].sigmoid().amax(-1)
        torch.testing.assert_close(each.scores, scores)
        assert (each.boxes <= torch.tensor([96, 64] * 2)).all()

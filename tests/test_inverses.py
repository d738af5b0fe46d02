"""The contract of every inverse: from its source's layout to its target's, whatever the sizes, or one clear line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from backsight.core import Layout, UserError
from backsight.engine import StagedModel
from backsight.inverses import INVERSES, Inverse, Patch, build_inverse
from backsight.inverses.conv import Local
from backsight.models import load_model
from backsight.models.vit import VIT
from numerics import assert_rounding, assert_same_weights
from pictures import opened
from small import SEED, build_small, random_images, save_timm

WIDTH = 48
UNCLIPPED = {"analytic"}
LOCAL = {"local": Local, "patch": Patch}


def on_grid(*grid: int, prefix: int = 0, width: int = WIDTH) -> Layout:
    """Tokens on the grid ``h w``."""
    return Layout(prefix + grid[0] * grid[1], width, ((grid[0], grid[1]),), prefix)


def on_grids(*grids: tuple[int, int]) -> Layout:
    """Tokens on the grids of several levels, the finest first."""
    return Layout(sum(h * w for h, w in grids), WIDTH, grids)


def queries(count: int, classes: int = 0) -> Layout:
    """Tokens without a place."""
    return Layout(count, classes + 4 if classes else WIDTH, classes=classes)


CASES: dict[str, tuple[Layout, Layout]] = {
    "patches of 16": (on_grid(3, 5, prefix=1), Layout.of_image((48, 80))),
    "patches of 14": (on_grid(5, 5), Layout.of_image((70, 70))),
    "stride 32, odd sides": (on_grid(2, 3), Layout.of_image((50, 70))),
    "stride 32, low and wide": (on_grid(1, 5), Layout.of_image((17, 160))),
    "stride 4": (on_grid(9, 7), Layout.of_image((36, 28))),
    "tokens to tokens": (on_grid(3, 5), on_grid(3, 5)),
    "with a class token": (on_grid(3, 5, prefix=1), on_grid(3, 5, prefix=1)),
    "map to finer map": (on_grid(3, 4), on_grid(6, 8, width=WIDTH // 2)),
    "queries to a grid": (queries(11), on_grid(3, 5)),
    "queries to queries": (queries(11), queries(11)),
    "predictions to queries": (queries(11, classes=6), queries(11)),
    "fewer to more queries": (queries(7), queries(11)),
    "predictions to fewer queries": (queries(11, classes=6), queries(7)),
    "pyramid to image": (on_grids((6, 8), (3, 4), (2, 2)), Layout.of_image((48, 64))),
    "pyramid to pyramid": (on_grids((6, 8), (3, 4)), on_grids((6, 8), (3, 4))),
    "queries to a pyramid": (queries(11), on_grids((6, 8), (3, 4))),
}


def constants_for(source: Layout, target: Layout) -> dict[str, Tensor]:
    """What a forward model with such a stage would have of static tensors."""
    side = Local(source, target, depth=0).stride() if target.width == 3 and len(source.grids) == 1 else 1
    places = source.tokens - source.prefix
    shapes = {
        "projection": (source.width, 3, side, side),
        "bias": (source.width,),
        "position": (places, source.width),
        "mean": (3,),
        "std": (3,),
    }
    return {name: torch.randn(shape, generator=torch.Generator().manual_seed(SEED)) for name, shape in shapes.items()}


def build(name: str, source: Layout, target: Layout, options: Mapping[str, Any] | None = None) -> Inverse:
    torch.manual_seed(SEED)
    return build_inverse(name, source, target, options or {}, constants_for(source, target))


def fits(name: str, case: str) -> bool:
    try:
        build(name, *CASES[case])
    except UserError:
        return False
    return True


def expect_contract(name: str, inverse: Inverse) -> None:
    """The output is as the target's layout says; images are in [0, 1]; gradients reach every parameter."""
    source, target = inverse.source, inverse.target
    features = torch.randn(2, source.tokens, source.width)
    output = inverse(features)
    if target.width == 3:
        assert output.shape == (2, 3, *target.grid)
        assert name in UNCLIPPED or (output.min() >= 0 and output.max() <= 1)
    else:
        assert output.shape == (2, target.tokens, target.width)
    assert output.isfinite().all()
    if inverse.trainable:
        output.square().sum().backward()
        assert [each for each, weight in inverse.named_parameters() if weight.grad is None] == []
    else:
        assert list(inverse.parameters()) == []


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", INVERSES)
def test_an_inverse_fits_its_layouts_or_says_that_it_does_not(name: str, case: str) -> None:
    if fits(name, case):
        return expect_contract(name, build(name, *CASES[case]))
    with pytest.raises(UserError, match=f"^the inverse '{name}' does not fit here: .*$"):
        build(name, *CASES[case])
    return None


def test_the_inverses_of_every_family_fit_their_stages(model: StagedModel) -> None:
    for stage in model.spec.stages:
        source, target = model.layout(stage.name), model.layout(model.spec.before(stage.name))
        assert "" in stage.inverses
        for name, options in stage.inverses.values():
            expect_contract(name, build(name, source, target, options))


@pytest.mark.parametrize("name", INVERSES)
def test_an_inverse_is_drawn_from_the_seed_and_saved_whole(name: str) -> None:
    source, target = next(CASES[case] for case in CASES if fits(name, case))
    one, same = build(name, source, target), build(name, source, target)
    assert_same_weights(one, same)
    empty = build_inverse(name, source, target, {})  # as when a chain is loaded: no forward model at hand
    empty.load_state_dict(one.state_dict())
    assert_same_weights(empty, one)
    features = torch.randn(1, source.tokens, source.width)
    assert_rounding(empty.eval()(features), one.eval()(features))


@settings(deadline=None, max_examples=60)
@given(st.integers(8, 300), st.integers(8, 300), st.sampled_from([4, 8, 16, 32]))
def test_a_rounded_up_grid_covers_the_image(height: int, width: int, stride: int) -> None:
    source = on_grid(-(-height // stride), -(-width // stride), width=4)
    found = Local(source, Layout.of_image((height, width)), depth=0).stride()
    h, w = source.grid
    assert h * found >= height
    assert w * found >= width
    tiled = (h * found, w * found) == (height, width)
    assert found == stride or tiled or (h == w == 1 and found < stride)


# ---- local inverses


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("size", [(48, 80), (45, 70)])
def test_one_token_paints_its_own_patch_alone(name: str, size: tuple[int, int]) -> None:
    source = on_grid(3, 5, prefix=1)
    inverse = build(name, source, Layout.of_image(size)).eval()
    features = torch.randn(1, source.tokens, WIDTH)
    before = inverse(features)
    for row, column in ((0, 0), (1, 3), (2, 4)):
        edited = features.clone()
        edited[:, 1 + row * 5 + column] += 1
        changed = (inverse(edited) != before).any(1)[0]
        patch = torch.zeros_like(changed)
        patch[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = True
        assert not changed[~patch].any()
        assert changed[patch].float().mean() > 0.9
    edited = features.clone()
    edited[:, 0] += 1
    assert torch.equal(inverse(edited), before), "the class token has no place in the image"


def test_every_token_of_a_pyramid_paints_its_own_patch_alone() -> None:
    source, target = CASES["pyramid to image"]
    inverse = build("local", source, target).eval()
    features = torch.randn(1, source.tokens, WIDTH)
    before = inverse(features)
    first = 0
    for (h, w), side in zip(source.grids, (8, 16, 32), strict=True):
        for row, column in ((0, 0), (h - 1, w // 2)):
            edited = features.clone()
            edited[:, first + row * w + column] += 1
            changed = (inverse(edited) != before).any(1)[0]
            patch = torch.zeros_like(changed)
            patch[row * side : (row + 1) * side, column * side : (column + 1) * side] = True
            assert not changed[~patch].any()
            assert changed[patch].float().mean() > 0.9
        first += h * w


def test_a_convolution_sees_its_neighbours() -> None:
    inverse = build("deconvolution", on_grid(3, 5), Layout.of_image((48, 80)), {"expansion": 1}).eval()
    features = torch.randn(1, 15, WIDTH)
    edited = features.clone()
    edited[:, 0] += 1
    changed = (inverse(edited) != inverse(features)).any(1)[0]
    assert changed[:16, 16:32].any()


def test_a_split_token_lands_in_its_own_four_places() -> None:
    inverse = build("swin", *CASES["map to finer map"], {"depth": 0})
    features = torch.randn(1, 12, WIDTH)
    edited = features.clone()
    edited[:, 1 * 4 + 2] *= -1
    changed = (inverse(edited) != inverse(features)).any(-1)[0].unflatten(0, (6, 8))
    assert changed.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_the_position_is_subtracted() -> None:
    source, target = on_grid(3, 5, prefix=1), Layout.of_image((48, 80))
    plain, subtracting = (build("patch", source, target, {"subtract_position": each}).eval() for each in (False, True))
    assert set(subtracting.state_dict()) - set(plain.state_dict()) == {"position"}
    position = constants_for(source, target)["position"]
    features = torch.randn(2, source.tokens, WIDTH)
    moved = features.clone()
    moved[:, 1:] += position
    torch.testing.assert_close(subtracting(moved), plain(features))


# ---- the analytic inverse


def wide_vit() -> StagedModel:
    """A ViT whose tokens are wide enough to hold their patch: D = 64, 3 p p = 48."""
    from timm.models.vision_transformer import VisionTransformer

    from backsight.models import stage_module
    from backsight.models import timm as timm_models

    torch.manual_seed(SEED)
    module = VisionTransformer(img_size=(24, 32), patch_size=4, embed_dim=64, depth=1, num_heads=2, num_classes=3)
    return stage_module(module, VIT, timm_models.pixels(module, None), name="wide")


def analytic_for(model: StagedModel) -> Inverse:
    constants = {**model.constants, "mean": torch.tensor(model.pixels.mean), "std": torch.tensor(model.pixels.std)}
    return build_inverse("analytic", model.layout("backbone"), model.layout("image"), {}, constants)


def test_the_analytic_inverse_is_exact_on_true_features() -> None:
    model = wide_vit()
    images = random_images(model)
    features = model.run(images)["backbone"]
    torch.testing.assert_close(analytic_for(model)(features), images, rtol=0, atol=1e-5)


def test_the_analytic_inverse_of_a_narrow_model_is_the_nearest(small_model: Callable[[str], StagedModel]) -> None:
    model = small_model("vit")  # D = 32 < 3 p p = 192: what it gives still has the same features
    images = random_images(model)
    features = model.run(images)["backbone"]
    painted = analytic_for(model)(features)
    assert (painted - images).abs().max() > 0.1
    torch.testing.assert_close(model.run(painted)["backbone"], features, rtol=0, atol=1e-4)


def test_the_analytic_inverse_is_exact_on_photos(test_data: Callable[[str], Path]) -> None:
    folder, model = test_data("imagenet-sample"), wide_vit()
    data = opened(f"folder:{folder}", model.pixels).test
    images = torch.stack([data[index].image for index in range(4)]).float() / 255
    painted = analytic_for(model)(model.run(images)["backbone"])
    torch.testing.assert_close(painted, images, rtol=0, atol=1e-5)


def test_the_analytic_inverse_needs_a_patch_projection(small_model: Callable[[str], StagedModel]) -> None:
    with pytest.raises(UserError, match="needs the forward model's 'projection', which this model does not have"):
        analytic_for(build_small("detr"))


# ---- wrong options


@pytest.mark.parametrize(
    ("name", "case", "options", "message"),
    [
        ("nose", "stride 4", {}, "no inverse 'nose': there are deconvolution, local"),
        ("deconvolution", "stride 4", {"nose": 1}, "has no 'nose': there is expansion, batch_norm, head$"),
        ("analytic", "stride 4", {"nose": 1}, "the inverse 'analytic' has no 'nose': there is nothing$"),
        ("deconvolution", "stride 4", {"expansion": "abc"}, "'expansion' of .* is 'abc': it has to be a number$"),
        ("deconvolution", "stride 4", {"expansion": 0}, "'expansion' of .* is 0.0: it has to be more than 0"),
        ("deconvolution", "stride 4", {"expansion": math.inf}, "'expansion' of .* is inf: .* and finite$"),
        ("deconvolution", "stride 4", {"batch_norm": 1}, "'batch_norm' of .* is 1: it has to be true or false$"),
        ("pyramid", "stride 4", {"level": 0.5}, "'level' of .* is 0.5: it has to be a whole number$"),
        ("local", "stride 4", {"depth": True}, "'depth' of .* is True: it has to be a whole number$"),
        ("patch", "stride 4", {"widths": [1, 2, 3]}, "a patch of 4 pixels takes 1 widths, got 3"),
        ("encoder", "tokens to tokens", {"heads": 7}, "does not fit here: .*divisible"),
        ("blocks", "tokens to tokens", {"heads": 7}, "does not fit here: .*divisible"),
        ("blocks", "tokens to tokens", {"heads": 0}, "'heads' of .* is 0: it has to be from 1"),
        ("encoder", "tokens to tokens", {"feedforward": -1}, "'feedforward' of .* is -1: it has to be from 1"),
        ("encoder", "tokens to tokens", {"depth": 10_000}, "'depth' of .* is 10000: it has to be from 0 to 256"),
        ("swin", "tokens to tokens", {"heads": 1, "window": 0}, "'window' of .* is 0: it has to be"),
        ("encoder", "with a class token", {}, "no place for tokens before the grid"),
        ("encoder", "map to finer map", {}, "keeps the tokens, but its source has 12 and its target 48"),
        ("swin", "stride 4", {}, "a finer map, not the image"),
        ("swin", "queries to a grid", {}, "0 grids, one was expected"),
        ("prediction", "queries to queries", {}, "needs class logits and boxes"),
        ("local", "tokens to tokens", {}, "Local reconstructs images from tokens with places"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(name: str, case: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, *CASES[case], options)


def test_the_inverse_of_a_loaded_model_is_the_paper_s_shape(tmp_path: Path) -> None:
    save_timm("vit", tmp_path)
    model = load_model(str(tmp_path))
    name, options = model.spec.stage("backbone").inverses[""]
    inverse = build(name, model.layout("backbone"), model.layout("image"), options)
    layers = [layer for layer in inverse.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.kernel_size for layer in layers] == [(2, 2)] * 4

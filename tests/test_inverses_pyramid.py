"""Inverses over several resolutions: which level reaches what, and deformable attention against other statements."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrEncoder,
    DeformableDetrEncoderLayer,
    DeformableDetrSinePositionEmbedding,
)

from backsight.chain import InverseChain, Plan, build_chain
from backsight.core import Layout, UserError
from backsight.inverses import DeformableDecoder, DeformableEncoder, PredictionMLP, Pyramid, build_inverse
from backsight.inverses.deformable import DeformableAttention, Mixing, PyramidPosition
from numerics import assert_rounding, assert_same_weights
from small import build_small, random_images

Grids = tuple[tuple[int, int], ...]
GRIDS: Grids = ((6, 8), (3, 4), (2, 2))
TRUE_GRIDS: Grids = ((60, 80), (30, 40), (15, 20), (8, 10))
IMAGE = Layout.of_image((48, 64))
WIDTH = 16
SMALL: dict[str, Any] = {"depth": 2, "heads": 2, "feedforward": 24, "points": 2}


def on(grids: Grids, width: int = WIDTH) -> Layout:
    return Layout(sum(h * w for h, w in grids), width, grids)


def level_slices(grids: Grids) -> list[slice]:
    """Where each level's tokens are in the row."""
    ends = [0]
    for h, w in grids:
        ends.append(ends[-1] + h * w)
    return [slice(*pair) for pair in pairwise(ends)]


def slopes(inverse: nn.Module, features: Tensor) -> Tensor:
    """How strongly each token reaches the output: ``N``."""
    features = features.clone().requires_grad_()
    output = inverse.eval()(features)
    return torch.autograd.grad((output * torch.randn_like(output)).sum(), features)[0].abs().sum((0, 2))


# ---- the pyramid


@pytest.mark.parametrize("level", [None, 0, 1, 2])
def test_a_chosen_level_is_read_alone(level: int | None) -> None:
    torch.manual_seed(0)
    inverse = Pyramid(on(GRIDS), IMAGE, level=level)
    found = slopes(inverse, torch.randn(2, 64, WIDTH))
    for index, tokens in enumerate(level_slices(GRIDS)):
        reached = found[tokens] > 0
        assert reached.all() if level in (None, index) else not reached.any()


@pytest.mark.parametrize("level", [-1, 3])
def test_a_level_that_is_not_there_is_told(level: int) -> None:
    with pytest.raises(UserError, match=f"there is no level {level}: .* has 3, the finest is 0"):
        build_inverse("pyramid", on(GRIDS), IMAGE, {"level": level})


@settings(deadline=None, max_examples=25)
@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([2, 4, 7, 8, 14, 16]), st.integers(1, 4), st.data())
def test_any_stride_and_any_number_of_levels_give_the_image(
    height: int, width: int, stride: int, levels: int, data: st.DataObject
) -> None:
    if stride in (7, 14):  # patches tile their image
        height, width = stride * (height // stride + 1), stride * (width // stride + 1)
    grids = tuple((-(-height // (stride << i)), -(-width // (stride << i))) for i in range(levels))
    level = data.draw(st.none() | st.integers(0, levels - 1))
    inverse = Pyramid(on(grids, 4), Layout.of_image((height, width)), level=level).eval()
    images = inverse(torch.randn(1, on(grids).tokens, 4))
    assert images.shape == (1, 3, height, width)
    assert 0 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize("stride", [4, 7, 8, 14])
def test_a_token_paints_around_its_own_place(stride: int) -> None:
    torch.manual_seed(0)
    grids = ((9, 9),)
    inverse = Pyramid(on(grids), Layout.of_image((9 * stride, 9 * stride))).eval()
    features = torch.randn(1, 81, WIDTH)
    edited = features.clone()
    edited[:, 4 * 9 + 4] += 3
    moved = (inverse(edited) - inverse(features)).abs().sum((0, 1)).detach()
    places = torch.arange(9 * stride) + 0.5
    for axis in (0, 1):
        centre = (moved.sum(axis) * places).sum() / moved.sum()
        assert 3.8 < centre / stride < 4.7  # strides of two begin at their token, as a ResNet's; others lie around it
    assert moved[: 2 * stride].sum() < 0.02 * moved.sum()


def test_the_pyramid_costs_little_more_than_the_paper_s_deconvolution() -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        inverse = Pyramid(on(TRUE_GRIDS, 256), Layout.of_image((480, 640)))
        inverse(torch.zeros(1, 6380, 256))
    assert counter.get_total_flops() / 2 == pytest.approx(1.2 * 45e9, rel=0.01)
    assert [inverse.channels(grid) for grid in TRUE_GRIDS] == [512, 1024, 1024, 1024]
    shapes = [layer.out_channels for layer in inverse.leave[-1].modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert shapes == [512, 256, 128, 64], "from stride 8 on as the paper's"


def errors(inverse: nn.Module, features: Tensor, target: Tensor, steps: int, rate: float) -> Iterator[float]:
    optimiser = torch.optim.Adam(inverse.parameters(), lr=rate)
    for _ in range(steps):
        loss = nn.functional.mse_loss(inverse(features), target)
        yield loss.item()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_a_pyramid_learns_two_pictures_by_heart() -> None:
    torch.manual_seed(0)
    inverse = Pyramid(on(GRIDS), IMAGE, expansion=16)
    pictures = nn.functional.interpolate(torch.rand(2, 3, 6, 8).round(), size=IMAGE.grid)
    found = list(errors(inverse, torch.randn(2, 64, WIDTH), pictures, steps=80, rate=Pyramid.learning_rate))
    assert found[-1] < 0.1 * found[0]


@pytest.mark.parametrize("name", ["deformable_encoder", "deformable_decoder"])
def test_deformable_inverses_learn_two_pyramids_by_heart(name: str) -> None:
    torch.manual_seed(0)
    source = on(GRIDS) if name == "deformable_encoder" else Layout(5, WIDTH)
    inverse = build_inverse(name, source, on(GRIDS), SMALL)
    target = 3 * torch.randn(2, 64, WIDTH)
    found = list(errors(inverse, torch.randn(2, source.tokens, WIDTH), target, steps=250, rate=5e-3))
    assert found[-1] < 0.3 * found[0]


# ---- deformable attention


def library_config(**changes: Any) -> DeformableDetrConfig:
    sizes = {"d_model": WIDTH, "encoder_attention_heads": 2, "encoder_n_points": 3, "num_feature_levels": len(GRIDS)}
    return DeformableDetrConfig(**{**sizes, "encoder_ffn_dim": 24, "dropout": 0.0, **changes})


def shared_arguments() -> dict[str, Any]:
    """What the library's layers want to know of the levels."""
    ratios = torch.ones(1, len(GRIDS), 2)
    return {
        "reference_points": DeformableDetrEncoder.get_reference_points(GRIDS, ratios, "cpu"),
        "spatial_shapes": torch.tensor(GRIDS),
        "spatial_shapes_list": list(GRIDS),
    }


def test_positions_are_the_library_s_and_say_the_level() -> None:
    position = PyramidPosition(GRIDS, WIDTH)
    sines = DeformableDetrSinePositionEmbedding(WIDTH // 2, normalize=True)
    for index, (tokens, grid) in enumerate(zip(level_slices(GRIDS), GRIDS, strict=True)):
        sine = sines(torch.Size([1, WIDTH, *grid]), "cpu", torch.float32)[0].flatten(1).T
        torch.testing.assert_close(position()[tokens], sine + position.level[index], rtol=0, atol=1e-5)


def test_attention_starts_as_the_library_s() -> None:
    layers: Any = DeformableDetrEncoder(library_config(encoder_layers=1)).layers
    ours, theirs = DeformableAttention(GRIDS, WIDTH, 2, 3), layers[0].self_attn
    assert {name: value.shape for name, value in ours.named_parameters()} == {
        name: value.shape for name, value in theirs.named_parameters()
    }
    torch.testing.assert_close(ours.sampling_offsets.bias, theirs.sampling_offsets.bias)
    for name in ("sampling_offsets.weight", "attention_weights.weight", "attention_weights.bias", "value_proj.bias"):
        assert not ours.get_parameter(name).any()
        assert not theirs.get_parameter(name).any()


def scrambled(module: nn.Module) -> nn.Module:
    """Every parameter drawn anew, so that nothing that starts at zero hides a difference."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def test_a_layer_is_the_library_s() -> None:
    theirs = scrambled(DeformableDetrEncoderLayer(library_config()).eval())
    ours = Mixing(GRIDS, WIDTH, 2, 3, 24, 0.0)
    names = {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2", "mlp.fc": "linear"}
    state = theirs.state_dict()
    for old, new in names.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    ours.load_state_dict(state)
    tokens, position = torch.randn(2, 64, WIDTH), torch.randn(64, WIDTH)
    expected = theirs(tokens, None, spatial_position_embeddings=position, **shared_arguments())
    torch.testing.assert_close(ours(tokens, position), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["deformable_encoder", "deformable_decoder"])
def test_the_cost_grows_with_the_tokens_and_not_with_their_square(name: str) -> None:
    def cost(grids: Grids) -> int:
        source = on(grids) if name == "deformable_encoder" else Layout(5, WIDTH)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            build_inverse(name, source, on(grids), SMALL)(torch.zeros(1, source.tokens, WIDTH))
        return counter.get_total_flops()

    assert cost(((24, 32), (12, 16), (8, 8))) == pytest.approx(16 * cost(GRIDS), rel=0.05)


# ---- the inverses of encoder and decoder


def test_places_of_one_level_reach_every_other() -> None:
    torch.manual_seed(0)
    inverse = scrambled(DeformableEncoder(on(GRIDS), on(GRIDS), **SMALL))
    assert (slopes(inverse, torch.randn(2, 64, WIDTH)) > 0).all()


def test_queries_have_no_order_but_their_learned_position() -> None:
    torch.manual_seed(0)
    inverse = DeformableDecoder(Layout(5, WIDTH), on(GRIDS), **SMALL).eval()
    features, order = torch.randn(2, 5, WIDTH), torch.tensor([3, 1, 4, 0, 2])
    expected = inverse(features)
    assert not torch.allclose(inverse(features[:, order]), expected, atol=1e-4)
    with torch.no_grad():
        inverse.query_position.copy_(inverse.query_position[order])
    torch.testing.assert_close(inverse(features[:, order]), expected, rtol=1e-4, atol=1e-5)


def test_another_width_is_reached() -> None:
    inverse = build_inverse("deformable_encoder", on(GRIDS), on(GRIDS, 24), SMALL)
    assert inverse(torch.randn(1, 64, WIDTH)).shape == (1, 64, 24)


def test_other_levels_are_reached_by_looking_from_their_places() -> None:
    source, target = on(GRIDS), on(((3, 7),), 24)
    inverse = build_inverse("deformable_encoder", source, target, SMALL).eval()
    features = torch.randn(1, source.tokens, WIDTH)
    assert inverse(features).shape == (1, 21, 24)
    again = build_inverse("deformable_encoder", source, target, SMALL).eval()
    again.load_state_dict(inverse.state_dict())
    assert_rounding(again(features), inverse(features))
    features.requires_grad_()
    (slope,) = torch.autograd.grad(inverse(features).square().sum(), features)
    assert (slope != 0).any(-1).float().mean() > 0.5


@pytest.mark.parametrize(
    ("name", "source", "target", "message"),
    [
        ("deformable_encoder", on(GRIDS), on(GRIDS, WIDTH), "not divisible by 3 heads"),
        ("deformable_encoder", Layout(5, WIDTH), Layout(5, WIDTH), "tokens with places in the image"),
        ("deformable_decoder", on(GRIDS), on(GRIDS), "leads from object queries"),
        ("deformable_decoder", Layout(5, WIDTH), IMAGE, "leads from object queries"),
        ("pyramid", on(GRIDS), on(GRIDS), "reconstructs images"),
        ("pyramid", Layout(5, WIDTH), IMAGE, "has 0, the finest is 0"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(name: str, source: Layout, target: Layout, message: str) -> None:
    options = {"heads": 3} if "divisible" in message else {}
    with pytest.raises(UserError, match=message):
        build_inverse(name, source, target, options)


def test_a_class_that_is_unlikelier_than_not_wins_nothing() -> None:
    source = Layout(3, 8, classes=4, scores="sigmoid")
    inverse = PredictionMLP(source, Layout(3, WIDTH), onehot=True)
    logits = torch.tensor([[[-3.0, -1.0, -2.0, -9.0], [0.2, 3.0, 1.0, -1.0], [-1.0, -1.0, 0.1, -1.0]]])
    assert inverse.classes(logits)[0].tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


# ---- in a chain


def test_a_chain_comes_back_from_its_folder(tmp_path: Path) -> None:
    model = build_small("deformable_detr")
    plans = {
        "backbone": Plan("pyramid", {"expansion": 1.0}),
        "backbone@coarse": Plan("pyramid", {"level": 3, "expansion": 1.0}),
        "encoder": Plan("deformable_encoder", SMALL),
        "decoder": Plan("deformable_decoder", SMALL),
    }
    chain = build_chain(model, plans, seed=3).eval()
    chain.save(tmp_path)
    loaded = InverseChain.from_pretrained(tmp_path)
    assert_same_weights(loaded, chain)
    trace = model.run(random_images(model))
    for via in ({}, {"backbone": "coarse"}):
        assert_rounding(loaded.reconstruct(trace, "decoder", via=via), chain.reconstruct(trace, "decoder", via=via))

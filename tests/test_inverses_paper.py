"""The inverses are the paper's: their layers, their sizes, and the same functions as other implementations of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DetrConfig
from transformers.models.detr.modeling_detr import (
    DetrDecoder,
    DetrDecoderLayer,
    DetrEncoder,
    DetrEncoderLayer,
    DetrSinePositionEmbedding,
)

from backsight.core import Layout
from backsight.inverses import INVERSES, Blocks, Decoder, Encoder, Inverse, PredictionMLP, build_inverse, sine_positions
from backsight.inverses.transformer import DecoderLayer, EncoderLayer

IMAGE = Layout.of_image((480, 640))
DETR_GRID = Layout(300, 256, ((15, 20),))
QUERIES = Layout(100, 256)
PREDICTION = Layout(100, 96, classes=92)
VIT_IMAGE = Layout.of_image((224, 224))
VIT_TOKENS = Layout(197, 768, ((14, 14),), prefix=1)

Shape = tuple[int, int, int, int]
"""Channels in and out, kernel, stride."""


def on_meta(name: str, source: Layout, target: Layout, **options: Any) -> Inverse:
    """A true-size inverse that takes no memory."""
    with torch.device("meta"):
        return build_inverse(name, source, target, options)


def convolutions(inverse: nn.Module) -> list[Shape]:
    layers = [layer for layer in inverse.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    return [(layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0]) for layer in layers]


def kinds(inverse: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in inverse.modules() if not list(layer.children())]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- sizes


DECONVOLUTION: list[Shape] = [
    (256, 2048, 1, 1), (2048, 1792, 3, 1), (1792, 1536, 3, 1),
    (1536, 1024, 3, 2), (1024, 512, 3, 2), (512, 256, 3, 2), (256, 128, 3, 2), (128, 64, 3, 2), (64, 3, 3, 1),
]  # fmt: skip
PLAIN: list[Shape] = [
    (256, 2048, 1, 1),
    (2048, 1024, 3, 2), (1024, 512, 3, 2), (512, 256, 3, 2), (256, 128, 3, 2), (128, 64, 3, 2), (64, 3, 3, 1),
]  # fmt: skip
LOCAL: list[Shape] = [*[(256, 256, 1, 1)] * 4, (256, 3, 32, 32)]
PATCH: list[Shape] = [(768, 256, 2, 2), (256, 64, 2, 2), (64, 16, 2, 2), (16, 3, 2, 2)]


@pytest.mark.parametrize(
    ("name", "options", "layers", "norms"),
    [
        ("deconvolution", {}, DECONVOLUTION, 8),
        ("deconvolution", {"batch_norm": False}, PLAIN, 0),
        ("local", {}, LOCAL, 0),
        ("patch", {}, PATCH, 3),
        ("patch", {"whole": True}, [(768, 3, 16, 16)], 0),
        ("patch", {"subtract_position": True}, PATCH, 3),
    ],
)
def test_convolutional_inverses_have_the_paper_s_layers(
    name: str, options: Mapping[str, Any], layers: list[Shape], norms: int
) -> None:
    source, target = (VIT_TOKENS, VIT_IMAGE) if name == "patch" else (DETR_GRID, IMAGE)
    inverse = on_meta(name, source, target, **options)
    assert convolutions(inverse) == layers
    assert kinds(inverse).count("BatchNorm2d") == norms
    assert kinds(inverse).count("ReLU") == len(layers) - 1
    assert kinds(inverse)[-1] == "Sigmoid"
    affine = sum(2 * width for _, width, _, _ in layers[:-1]) if norms else 0
    assert count(inverse) == affine + sum(a * b * kernel**2 + b for a, b, kernel, _ in layers)


def test_the_deconvolution_costs_what_the_paper_s_does() -> None:
    inverse = on_meta("deconvolution", DETR_GRID, IMAGE)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        inverse(torch.zeros(1, 300, 256))
    by_hand, places = 0, 15 * 20
    for wide, narrow, kernel, stride in DECONVOLUTION:
        by_hand += places * wide * narrow * kernel**2
        places *= stride**2
    multiply_adds = counter.get_total_flops() / 2
    assert multiply_adds == by_hand
    assert multiply_adds == pytest.approx(45e9, rel=0.01)


@pytest.mark.parametrize(("name", "layer_class"), [("encoder", DetrEncoder), ("decoder", DetrDecoder)])
def test_transformer_inverses_are_as_large_as_what_they_invert(name: str, layer_class: type[nn.Module]) -> None:
    source, target = (DETR_GRID, DETR_GRID) if name == "encoder" else (QUERIES, DETR_GRID)
    with torch.device("meta"):
        forward = layer_class(DetrConfig())
    learned = 100 * 256 if name == "decoder" else 0  # the position of the queries
    assert count(on_meta(name, source, target)) == count(forward) + learned


def test_the_blocks_are_as_large_as_a_vit_s() -> None:
    import timm

    with torch.device("meta"):
        forward: Any = timm.create_model("vit_base_patch16_224")
    assert count(on_meta("blocks", VIT_TOKENS, VIT_TOKENS)) == count(forward.blocks)


def test_swin_s_inverse_is_its_stage_with_splitting_for_merging() -> None:
    import timm

    with torch.device("meta"):
        forward: Any = timm.create_model("swin_base_patch4_window7_224")
    source, target = Layout(196, 512, ((14, 14),)), Layout(784, 256, ((28, 28),))
    inverse: Any = on_meta("swin", source, target, depth=18, heads=16, window=7)
    assert count(inverse.blocks) == count(forward.layers[2].blocks)
    assert (inverse.upsample.in_features, inverse.upsample.out_features) == (512, 4 * 256)
    merge = forward.layers[2].downsample.reduction
    assert (merge.in_features, merge.out_features) == (4 * 256, 512)


@pytest.mark.parametrize("onehot", [False, True])
def test_the_prediction_inverse_is_a_small_network(onehot: bool) -> None:
    inverse = PredictionMLP(PREDICTION, QUERIES, onehot=onehot)
    layers = [layer for layer in inverse.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(96, 512), (512, 256), (256, 256)]


def test_learning_rates_are_the_paper_s() -> None:
    rates = {"deconvolution": 3e-3, "patch": 1e-3, "encoder": 1e-3, "decoder": 1e-3, "prediction": 1e-3, "blocks": 1e-4}
    assert {name: INVERSES[name].learning_rate for name in rates} == rates


# ---- the same functions as other implementations


@pytest.mark.parametrize("grid", [(15, 20), (1, 7), (12, 16)])
@pytest.mark.parametrize("width", [32, 256])
def test_positions_are_those_of_transformers(grid: tuple[int, int], width: int) -> None:
    embedding = DetrSinePositionEmbedding(width // 2, normalize=True)
    shape = torch.Size((1, width, *grid))
    expected = embedding(shape, torch.device("cpu"), torch.float32).flatten(2).mT[0]
    torch.testing.assert_close(sine_positions(grid, width), expected, rtol=0, atol=1e-5)


SMALL = {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
FORWARD = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 2, "decoder_layers": 2}
OPTIONS: dict[str, Any] = {"depth": 2, "heads": 4, "feedforward": 48}
PLACES = Layout(15, 32, ((3, 5),))
SEVEN = Layout(7, 32)


def copy_attention(own: nn.MultiheadAttention, other: Any) -> None:
    for name, weight, bias in zip("qkv", own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3), strict=True):
        projection = getattr(other, f"{name}_proj")
        projection.weight.data, projection.bias.data = weight.data, bias.data
    other.o_proj.load_state_dict(own.out_proj.state_dict())


def copy_layer(own: EncoderLayer | DecoderLayer, other: Any) -> None:
    copy_attention(own.self_attn, other.self_attn)
    other.self_attn_layer_norm.load_state_dict(own.norm1.state_dict())
    other.mlp.fc1.load_state_dict(own.linear1.state_dict())
    other.mlp.fc2.load_state_dict(own.linear2.state_dict())
    last = own.norm3 if isinstance(own, DecoderLayer) else own.norm2
    other.final_layer_norm.load_state_dict(last.state_dict())
    if isinstance(own, DecoderLayer):
        copy_attention(own.multihead_attn, other.encoder_attn)
        other.encoder_attn_layer_norm.load_state_dict(own.norm2.state_dict())


def scrambled(inverse: Inverse) -> Inverse:
    """Biases and norms too: at their start they would hide where they belong."""
    for parameter in inverse.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return inverse.eval()


def test_the_encoder_computes_what_transformers_does() -> None:
    torch.manual_seed(0)
    inverse: Any = scrambled(Encoder(PLACES, PLACES, **OPTIONS))
    features = torch.randn(2, 15, 32)
    expected, position = features, sine_positions((3, 5), 32).expand(2, -1, -1)
    for own in inverse.layers:
        layer: Any = DetrEncoderLayer(config()).eval()
        copy_layer(own, layer)
        expected = layer(expected, None, spatial_position_embeddings=position)
    torch.testing.assert_close(inverse(features), expected)


def test_the_decoder_computes_what_transformers_does() -> None:
    torch.manual_seed(0)
    inverse: Any = scrambled(Decoder(SEVEN, PLACES, **OPTIONS))
    features = torch.randn(2, 7, 32)
    expected, position = torch.zeros(2, 15, 32), sine_positions((3, 5), 32).expand(2, -1, -1)
    for own in inverse.layers:
        layer: Any = DetrDecoderLayer(config()).eval()
        copy_layer(own, layer)
        expected = layer(
            expected,
            object_queries_position_embeddings=position,
            encoder_hidden_states=features,
            spatial_position_embeddings=inverse.query_position.expand(2, -1, -1),
        )
    torch.testing.assert_close(inverse(features), inverse.norm(expected))


def config() -> DetrConfig:
    options: dict[str, Any] = {**SMALL, **FORWARD}
    made = DetrConfig(**options)
    made._attn_implementation = "eager"
    return made


def test_without_positions_the_encoder_is_torch_s_own() -> None:
    torch.manual_seed(0)
    inverse: Any = scrambled(Encoder(PLACES, PLACES, **OPTIONS))
    inverse.position.zero_()
    features = torch.randn(2, 15, 32)
    expected = features
    for own in inverse.layers:
        layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True).eval()
        layer.load_state_dict(own.state_dict())
        expected = layer(expected)
    torch.testing.assert_close(inverse(features), expected)


def test_the_blocks_are_pre_norm_attention_and_network() -> None:
    torch.manual_seed(0)
    tokens = Layout(16, 32, ((3, 5),), prefix=1)
    inverse: Any = scrambled(Blocks(tokens, tokens, depth=1, heads=4))
    (block,) = inverse.blocks
    layer = nn.TransformerEncoderLayer(32, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
    own = block.state_dict()
    names = {"attn.qkv.": "self_attn.in_proj_", "attn.proj.": "self_attn.out_proj.", "mlp.fc1.": "linear1."}
    names |= {"mlp.fc2.": "linear2."}
    state = {_renamed(name, names): value for name, value in own.items()}
    layer.load_state_dict(state)
    layer.norm1.eps = layer.norm2.eps = block.norm1.eps
    features = torch.randn(2, 16, 32)
    torch.testing.assert_close(inverse(features), layer(features))


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name


# ---- class distributions


def predictions(logits: Tensor) -> Tensor:
    return torch.cat([logits, torch.full((*logits.shape[:-1], 4), 0.5)], -1)


def test_onehot_ignores_the_uncertainty_between_classes() -> None:
    torch.manual_seed(0)
    source, target = Layout(2, 9, classes=5), Layout(2, 8)
    sure = torch.tensor([[[0.0, 9, 0, 0, 0], [0, 0, 0, 0, 9]]])
    unsure = torch.tensor([[[0.0, 1, 0.9, 0.8, 0], [0.1, 0.2, 0.3, 0.4, 0.5]]])
    onehot, full = PredictionMLP(source, target, onehot=True), PredictionMLP(source, target)
    assert torch.equal(onehot(predictions(sure)), onehot(predictions(unsure)))
    assert not torch.allclose(full(predictions(sure)), full(predictions(unsure)), atol=1e-3)
    assert onehot.classes(unsure)[0].tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    torch.testing.assert_close(full.classes(unsure), unsure.exp() / unsure.exp().sum(-1, keepdim=True))
    moved = predictions(sure)
    moved[..., -1] = 0.9
    assert not torch.allclose(onehot(predictions(sure)), onehot(moved))  # boxes stay


def test_sigmoid_scores_are_read_class_by_class() -> None:
    source = Layout(2, 9, classes=5, scores="sigmoid")
    logits = torch.randn(1, 2, 5)
    torch.testing.assert_close(PredictionMLP(source, Layout(2, 8)).classes(logits), 1 / (1 + (-logits).exp()))


def test_every_query_is_inverted_by_itself() -> None:
    inverse = PredictionMLP(Layout(3, 9, classes=5), Layout(3, 8))
    features = torch.rand(1, 3, 9)
    edited = features.clone()
    edited[:, 1] += 1
    changed = (inverse(edited) != inverse(features)).any(-1)[0]
    assert changed.tolist() == [False, True, False]

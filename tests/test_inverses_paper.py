"""The inverses are the paper's: their layers, their sizes, and the same functions as other implementations of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DetrConfig
from transformers.models.detr.modeling_detr import DetrDecoder, DetrEncoder, DetrSinePositionEmbedding

from backsight.core import Layout
from backsight.inverses import INVERSES, Inverse, PredictionMLP, build_inverse, sine_positions

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

"""The cost model: operations counted by hand, and hours that follow from them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backsight.cost import ADAM, FORWARD, cost, count_weights, table
from backsight.engine import StagedModel
from backsight.tasks import build_chains, make_plans


def test_a_vision_transformer_has_the_operations_of_its_matrix_products(
    small_model: Callable[[str], StagedModel],
) -> None:
    model = small_model("vit")
    module = model.module
    tokens, width = model.layout("backbone").tokens, model.layout("backbone").width
    hidden = module.blocks[0].mlp.fc1.out_features
    patch = 3 * module.patch_embed.patch_size[0] ** 2
    block = 2 * tokens * (4 * width**2 + 2 * width * hidden) + 2 * 2 * tokens**2 * width
    expected = 2 * (tokens - model.layout("backbone").prefix) * patch * width + len(module.blocks) * block
    assert cost(model).parts[FORWARD].operations == pytest.approx(expected, rel=0.01)


def test_an_inverse_is_counted_both_ways(small_model: Callable[[str], StagedModel]) -> None:
    model = small_model("detr")
    found = cost(model, seeds=3, inverses=("backbone=local:depth=2",))
    (chain,) = build_chains(model, make_plans(model, ("backbone=local:depth=2",)), [0])
    layout = model.layout("backbone")
    stride = model.pixels.size[0] // layout.grid[0]
    cells = layout.grid[0] * layout.grid[1]
    forward = 2 * cells * (2 * layout.width**2 + layout.width * 3 * stride**2)
    first = 2 * cells * layout.width**2  # whose input needs no gradient
    assert found.parts["backbone"].operations == 3 * forward - first
    assert found.parts["backbone"].weights == count_weights(chain.inverses["backbone"])
    trained = {name: part for name, part in found.parts.items() if part.trained}
    weights = sum(part.weights for part in trained.values())
    assert found.state_bytes == 4 * (found.parts[FORWARD].weights + 3 * ADAM * weights)
    operations = found.parts[FORWARD].operations + 3 * sum(part.operations for part in trained.values())
    assert found.operations == operations
    assert found.device_hours(3600, rate=1e9, share=0.5) == pytest.approx(operations / 5e8)
    assert found.device_hours(200, 1e9, 0.5) == pytest.approx(2 * found.device_hours(100, 1e9, 0.5))
    told = table(found, 1e12, 0.4, 10)
    assert any("backbone" in line for line in told)
    assert any("COCO, 10 epochs of 118,287 images" in line for line in told)

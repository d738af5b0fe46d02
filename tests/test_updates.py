"""How networks are updated: Muon, Adam with a clipped gradient, and their schedules."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from backsight.core import Layout
from backsight.inverses import Inverse, build_inverse
from backsight.options import Recipe
from backsight.training.updates import BLOCK, Muon, Updates, orthogonalised, schedule
from numerics import assert_rounding


def adam(layer: nn.Module, clip: float = 1.0) -> Updates:
    return Updates(layer, "paper", 1e-2, clip)


def go_down(updates: Updates, loss: Tensor, factor: float = 1.0) -> None:
    loss.backward()
    updates.step(factor)


def muon(weights: list[Tensor], **options: float) -> Muon:
    optimiser = Muon(weights, **options)
    optimiser.grad_scale, optimiser.found_inf = torch.tensor(1.0), torch.tensor(0.0)
    return optimiser


# ---- Muon


@pytest.mark.parametrize("shape", [(24, 24), (24, 30), (24, 200), (200, 24), (64, 96)])
def test_an_update_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, values, right = torch.linalg.svd(orthogonalised(matrix[None])[0], full_matrices=False)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    polar = u @ v
    cosine = (left @ values.diag() @ right * polar).sum() / polar.norm() / values.norm()
    assert cosine > 0.98, "the directions are those of the matrix"


@pytest.mark.parametrize("shape", [(24, 200), (200, 24)])
def test_an_update_rounded_as_on_a_gpu_stays_bounded(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    few = torch.randn(3, shape[0], 4) @ torch.randn(3, 4, shape[1])  # as gradients are: of few directions
    largest = torch.linalg.matrix_norm(orthogonalised(few.bfloat16()).float(), 2)
    assert largest.max() < 1.4


def test_a_wide_matrix_is_iterated_on_by_its_gram_matrix_to_the_same_end() -> None:
    torch.manual_seed(0)
    wide = torch.randn(20, 200, dtype=torch.float64)
    padded = torch.cat([wide, torch.zeros(120, 200, dtype=torch.float64)])  # nearly square: by the other way
    torch.testing.assert_close(orthogonalised(wide[None]), orthogonalised(padded[None])[:, :20], rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(2 * BLOCK + 7, 600), (600, 2 * BLOCK + 7)])
def test_a_large_matrix_is_orthogonalised_in_blocks(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    several = torch.randn(2, *shape)
    dim = 1 if shape[0] < shape[1] else 2
    parts = several.split(math.ceil(min(shape) / 3), dim)
    assert len(parts) == 3
    assert_rounding(orthogonalised(several), torch.cat([orthogonalised(part) for part in parts], dim), 1e-4)


def test_a_scale_of_the_gradient_changes_nothing_and_little_directions_count_as_much() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(16, 16) @ torch.diag(torch.logspace(0, -1.5, 16))
    several = orthogonalised(torch.stack([gradient, 1e3 * gradient, torch.randn(16, 16)]))
    assert_rounding(several[1], several[0], 1e-3)
    values = torch.linalg.svdvals(several[0])
    assert values.min() > 0.1 * values.max()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (24, 24)])
def test_matrices_are_updated_as_by_torch_s_own(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    mine = muon([ours], lr=1e-2)
    reference = torch.optim.Muon([theirs], lr=2e-2, weight_decay=0.0, adjust_lr_fn="original")
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    # theirs is computed in bf16, whatever the device
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()


def test_a_kernel_is_updated_as_the_matrix_that_it_is() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.zeros(8, 10, 3, 3).contiguous(memory_format=torch.channels_last))
    matrix = nn.Parameter(torch.zeros(8, 90))
    kernel.grad = torch.randn_like(kernel)
    matrix.grad = kernel.grad.flatten(1).clone()
    for weight in (kernel, matrix):
        muon([weight], lr=0.1).step()
    assert_rounding(kernel.flatten(1), 3 * matrix)


@pytest.mark.parametrize("shape", [(32, 32), (256, 256), (32, 128), (128, 32)])
def test_a_step_is_as_long_for_every_width(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape)
    muon([weight], lr=1.0).step()
    longest = torch.linalg.svdvals(weight.detach()).max() / max(1, shape[0] / shape[1]) ** 0.5
    assert 1.4 < longest < 2.6


def encoder() -> Inverse:
    layout = Layout(6, 16, ((2, 3),))
    return build_inverse("encoder", layout, layout, {"depth": 1, "heads": 2, "feedforward": 24})


def test_muon_takes_matrices_and_adam_all_else() -> None:
    fast, paper = Updates(encoder(), "fast", 1e-2), Updates(encoder(), "paper", 1e-2)
    assert [type(each).__name__ for each in fast.optimisers] == ["Adam", "Muon"]
    shapes = [weight.dim() for each in fast.optimisers for weight in each.param_groups[0]["params"]]
    assert sorted(shapes) == [1] * 8 + [2] * 4
    assert [type(each).__name__ for each in paper.optimisers] == ["Adam"]
    assert [type(each).__name__ for each in Updates(nn.Linear(16, 16), "fast", 1e-2).optimisers] == ["Adam"]
    decoder = build_inverse("decoder", Layout(9, 16), Layout(16, 16, ((4, 4),)), {"depth": 1, "heads": 2})
    assert decoder.get_parameter("query_position") in _adam_s(Updates(decoder, "fast", 1e-2))


def _adam_s(updates: Updates) -> set[Tensor]:
    return set(updates.optimisers[0].param_groups[0]["params"])


def test_updates_go_on_where_a_checkpoint_was_written() -> None:
    torch.manual_seed(0)
    inverse, features = encoder(), torch.randn(2, 6, 16)
    updates = Updates(inverse, "fast", 1e-2)
    go_down(updates, inverse(features).square().mean())
    twin = copy.deepcopy(inverse)
    again = Updates(twin, "fast", 1e-2)
    again.load_state_dict(copy.deepcopy(updates.state_dict()))
    for network, each in ((inverse, updates), (twin, again)):
        go_down(each, network(features).square().mean())
    assert_rounding(dict(twin.state_dict()), dict(inverse.state_dict()))


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    inverse, layer = encoder(), nn.Linear(16, 16)
    for network, updates in ((inverse, Updates(inverse, "fast", 1e-2)), (layer, adam(layer))):
        before = copy.deepcopy(network.state_dict())
        go_down(updates, network(torch.ones(1, 6, 16)).sum() * float("nan"))
        go_down(updates, network(torch.randn(1, 6, 16)).sum() * 1e30)  # whose norm is not a number that fits
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    go_down(updates := Updates(inverse, "fast", 1e-2), inverse(torch.randn(1, 6, 16)).square().sum())
    assert all(weight.isfinite().all() for weight in inverse.parameters())
    assert all(each["momentum"].isfinite().all() for each in updates.optimisers[1].state.values())


# ---- Adam


@pytest.mark.parametrize("scale", [1e-2, 1e2])
def test_a_step_is_adam_with_a_clipped_gradient(scale: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 7)
    twin = copy.deepcopy(layer)
    ours, reference = adam(layer), torch.optim.Adam(twin.parameters(), lr=1e-2)
    for _ in range(5):
        inputs = torch.randn(3, 5)
        go_down(ours, scale * layer(inputs).square().sum())
        reference.zero_grad()
        (scale * twin(inputs).square().sum()).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        reference.step()
    torch.testing.assert_close(layer.weight, twin.weight, atol=1e-6, rtol=0)


def test_a_gradient_is_clipped_to_the_norm_that_is_given() -> None:
    layer = nn.Linear(1, 1, bias=False)
    updates = adam(layer, clip=0.5)
    go_down(updates, 100 * layer.weight.sum())
    (state,) = updates.optimisers[0].state.values()
    assert state["exp_avg"].item() == pytest.approx(0.05, rel=1e-4)  # a tenth of the gradient, once it is clipped


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_the_fast_recipe_s_running_statistics_are_those_of_the_batches_alone(recipe: Recipe) -> None:
    torch.manual_seed(0)
    features, target = 3 + torch.randn(4, 6, 16), Layout(24 * 32, 3, ((24, 32),), image=True)
    inverse = build_inverse("deconvolution", Layout(6, 16, ((2, 3),)), target, {"expansion": 1}).train()
    norm = next(each for each in inverse.modules() if isinstance(each, nn.BatchNorm2d))
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].transpose(0, 1).flatten(1)))
    updates = Updates(inverse, recipe, 1e-3)
    for _ in range(3):
        go_down(updates, inverse(features).square().mean())
    weights = torch.tensor([0.81, 0.09, 0.1] if recipe == "fast" else [0.081, 0.09, 0.1])
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert_rounding(norm.running_mean, weights @ torch.stack([each.mean(1) for each in seen]), 1e-5)
    start = 0.0 if recipe == "fast" else 0.729
    assert_rounding(norm.running_var, start + weights @ torch.stack([each.var(1) for each in seen]), 1e-4)


def test_running_statistics_that_are_known_stay_as_they_are() -> None:
    target = Layout(24 * 32, 3, ((24, 32),), image=True)
    inverse = build_inverse("deconvolution", Layout(6, 16, ((2, 3),)), target, {"expansion": 1}).train()
    inverse(torch.randn(4, 6, 16))
    assert not Updates(inverse, "fast", 1e-3).new_norms


def test_the_norms_of_several_processes_forget_their_start_too() -> None:
    target = Layout(24 * 32, 3, ((24, 32),), image=True)
    inverse = build_inverse("deconvolution", Layout(6, 16, ((2, 3),)), target, {"expansion": 1})
    one = len(Updates(inverse, "fast", 1e-3).new_norms)
    nn.SyncBatchNorm.convert_sync_batchnorm(inverse)
    assert len(Updates(inverse, "fast", 1e-3).new_norms) == one > 0


def test_a_norm_without_running_means_or_that_no_batch_passed_stays_as_it_is() -> None:
    target = Layout(24 * 32, 3, ((24, 32),), image=True)
    inverse = build_inverse("deconvolution", Layout(6, 16, ((2, 3),)), target, {"expansion": 1}).train()
    inverse.unused, inverse.average = nn.BatchNorm2d(8), nn.BatchNorm1d(16, momentum=None)
    inverse.without = nn.BatchNorm1d(16, track_running_stats=False)
    features = torch.randn(4, 6, 16)
    updates = Updates(inverse, "fast", 1e-3)
    go_down(updates, inverse(inverse.without(inverse.average(features.mT.contiguous()).mT.mT).mT).square().mean())
    assert inverse.unused.running_var.eq(1).all()
    assert_rounding(inverse.average.running_mean, features.mean((0, 1)), 1e-5)


# ---- schedules


def test_the_fast_recipe_rises_and_falls_and_the_paper_s_is_constant() -> None:
    rates = [schedule("fast", step, step / 100) for step in range(101)]
    assert max(rates) <= 1
    assert rates[0] < 0.2
    assert rates[-1] == pytest.approx(0.01)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert {schedule("paper", step, step / 100) for step in range(101)} == {1.0}


def test_a_short_run_reaches_the_full_rate_as_well() -> None:
    rates = [schedule("fast", step, step / 12) for step in range(13)]  # as one of few minutes is
    assert max(rates) == rates[2] > 0.9

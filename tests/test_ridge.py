"""Inverses that begin with what is known of their features, and those that are computed from it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import backsight as bs
from backsight.core import Key, Layout, UserError
from backsight.data import Batch
from backsight.distributed import Processes
from backsight.inverses import Inverse, Moments, Ridge, build_inverse
from backsight.options import TrainOptions
from backsight.tasks import Modular, begin, build_chains, make_plans, make_task
from backsight.training.batches import print_nothing
from numerics import assert_rounding
from small import build_small, random_images

D = 6
TOKENS = Layout(12, D, ((3, 4),))
IMAGE = Layout.of_image((12, 16))
SAME: dict[str, tuple[Layout, Layout]] = {
    "token": (Layout(13, D, ((3, 4),), prefix=1), Layout(13, 5, ((3, 4),), prefix=1)),
    "neighbours": (TOKENS, Layout(12, 5, ((3, 4),))),
    "all": (Layout(5, D), TOKENS),
}
FINER: dict[str, tuple[Layout, Layout]] = {
    "token": (TOKENS, IMAGE),
    "neighbours": (TOKENS, Layout.of_image((11, 15))),
    "all": (Layout(5, D), IMAGE),
}


def ridge(source: Layout, target: Layout, reads: str = "auto") -> Ridge:
    return build_inverse("ridge", source, target, {"reads": reads})


def solved(inverse: Inverse, features: Tensor, target: Tensor, counted: Tensor | None = None) -> Inverse:
    moments = inverse.moments()
    for start in range(0, len(features), 8):
        part = slice(start, start + 8)
        moments.add(features[part], target[part], None if counted is None else counted[part])
    list(moments.tensors())
    inverse.begin(moments)
    return inverse.eval()


def drawn(inverse: Ridge, images: int) -> tuple[Tensor, Tensor]:
    """Features, and what a ridge regression with weights drawn at random makes of them; images within [0, 1]."""
    torch.manual_seed(0)
    truth = build_inverse("ridge", inverse.source, inverse.target, {"reads": inverse.reads})
    for name, value in truth.state_dict().items():
        middle = 0.5 if inverse.target.image and name == "offset" else 0.0
        value.copy_(middle + 0.01 * torch.randn_like(value))
    features = 3 + torch.randn(images, inverse.source.tokens, inverse.source.width)
    if inverse.target.image:
        features = features - 3
    return features, truth(features)


@pytest.mark.parametrize("case", [*SAME.items(), *FINER.items()], ids=lambda case: case[0])
def test_a_linear_relation_is_found_exactly(case: tuple[str, tuple[Layout, Layout]]) -> None:
    reads, layouts = case
    inverse = ridge(*layouts, reads)
    features, target = drawn(inverse, 200)
    solved(inverse, features[:160], target[:160])
    torch.testing.assert_close(inverse(features[160:]), target[160:], rtol=0, atol=2e-4)


def test_each_is_the_solution_of_its_normal_equations() -> None:
    """By a second implementation: every image's rows stacked, offsets as columns of their own, one least squares."""
    torch.manual_seed(1)
    features = torch.randn(64, 12, D) + torch.arange(12.0)[None, :, None]
    target = torch.randn(64, 12, 5) + features[..., :5].square()
    inverse = ridge(TOKENS, Layout(12, 5, ((3, 4),)), "token")
    moments = inverse.moments()
    moments.add(features[:32], target[:32])
    moments.add(features[32:], target[32:])
    inverse.begin(moments)
    places = torch.eye(12).repeat(64, 1)
    rows = torch.cat([features.flatten(0, 1), places], 1).double()
    expected = torch.linalg.lstsq(rows, target.flatten(0, 1).double()).solution
    fitted = (rows @ expected).float().view_as(target)
    error, least = ((each - target).square().mean().item() for each in (inverse(features), fitted))
    assert least <= error * (1 + 1e-6)
    assert error == pytest.approx(least, rel=2e-3)


def test_what_is_noise_alone_is_given_its_mean() -> None:
    torch.manual_seed(2)
    features, target = torch.randn(40, 5, D), 7 + torch.randn(40, 12, D)
    inverse = solved(ridge(*SAME["all"]), features, target)
    expected = target.mean(0).expand(40, -1, -1)
    left = (inverse(torch.randn(40, 5, D)) - expected).square().mean()
    assert left < 0.4, "with 30 numbers to read of 40 images, plain least squares would be far off"


def test_images_stay_in_their_range_and_are_cut_to_their_size() -> None:
    inverse = ridge(*FINER["neighbours"])
    features, target = drawn(inverse, 60)
    output = solved(inverse, features, target)(100 * features)
    assert output.shape == (60, 3, 11, 15)
    assert output.min() == 0
    assert output.max() == 1


def test_tokens_of_the_padding_do_not_count() -> None:
    torch.manual_seed(3)
    layouts = (TOKENS, Layout(12, D, ((3, 4),)))
    features = torch.randn(64, 12, D)
    target = 2 * features
    target[:, 8:] = 1e3 * torch.randn(64, 4, D)
    counted = torch.ones(64, 12, dtype=torch.bool)
    counted[:, 8:] = False
    inverse = solved(ridge(*layouts, "token"), features, target, counted)
    torch.testing.assert_close(inverse(features)[:, :8], target[:, :8], rtol=0, atol=1e-3)


def test_sums_of_several_processes_are_those_of_one() -> None:
    inverse = ridge(*SAME["neighbours"])
    features, target = drawn(inverse, 48)
    whole = inverse.moments()
    parts = [inverse.moments() for _ in range(3)]
    for number in range(6):
        rows = slice(8 * number, 8 * number + 8)
        whole.add(features[rows], target[rows])
        parts[number // 3].add(features[rows], target[rows])  # the last process has no image at all
    totals = [torch.stack(each).sum(0) for each in zip(*(part.tensors() for part in parts), strict=True)]
    expected = list(whole.tensors())
    count = len(totals) // 2  # which half a batch goes to is each process's own count
    for found in (totals, expected):
        found[:] = [one + other for one, other in zip(found[:count], found[count:], strict=True)]
    assert_rounding(totals, expected, 1e-12)


def test_what_reads_too_much_at_once_is_refused() -> None:
    with pytest.raises(UserError, match=r"the inverse 'ridge' does not fit here: it would read 25,600 numbers at once"):
        build_inverse("ridge", Layout(100, 256), Layout(300, 256, ((15, 20),)), {})


# ---- trained inverses that begin by it


def test_blocks_begin_as_the_ridge_regression() -> None:
    source, target = Layout(13, D, ((3, 4),), prefix=1), Layout(13, 8, ((3, 4),), prefix=1)
    inverse = build_inverse("blocks", source, target, {"depth": 2, "heads": 2, "start": "ridge"})
    plain = ridge(source, target, "token")
    features, wanted = drawn(plain, 80)
    assert_rounding(solved(inverse, features, wanted)(features), solved(plain, features, wanted)(features), 1e-4)
    torch.testing.assert_close(inverse(features), wanted, rtol=0, atol=2e-3)
    inverse(features).square().sum().backward()
    assert inverse.get_parameter("blocks.0.mlp.fc2.weight").grad is not None


OUTPUTS: dict[str, tuple[Layout, Layout, dict[str, Any]]] = {
    "encoder": (Layout(12, 8, ((3, 4),)), Layout(12, 8, ((3, 4),)), {"depth": 2, "heads": 2, "feedforward": 16}),
    "decoder": (Layout(5, 8), Layout(12, 8, ((3, 4),)), {"depth": 2, "heads": 2, "feedforward": 16}),
    "deformable_encoder": (Layout(12, 8, ((3, 4),)), Layout(12, 8, ((3, 4),)), {"depth": 1, "heads": 2}),
    "deformable_decoder": (Layout(5, 8), Layout(12, 8, ((3, 4),)), {"depth": 1, "heads": 2}),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_begins_with_the_mean_and_the_spread_of_its_target(name: str) -> None:
    source, target, options = OUTPUTS[name]
    torch.manual_seed(4)
    mean, std = 5 * torch.randn(target.width), torch.logspace(-1, 1, target.width)
    features = torch.randn(200, source.tokens, source.width)
    wanted = mean + std * torch.randn(200, target.tokens, target.width)
    output = solved(build_inverse(name, source, target, options), features, wanted)(features).detach()
    torch.testing.assert_close(output.mean((0, 1)), mean, rtol=0, atol=1.0 * std.max().item())
    ratio = (output - output.mean((0, 1))).square().mean((0, 1)).sqrt() / std
    assert ((ratio > 0.3) & (ratio < 3)).all()


def test_a_prediction_inverse_begins_as_if_it_read_numbers_of_variance_one() -> None:
    source, target = Layout(10, 9, classes=5), Layout(10, 16)
    torch.manual_seed(5)
    inverse = build_inverse("prediction", source, target, {})
    features = torch.cat([8 * torch.randn(100, 10, 5), torch.rand(100, 10, 4)], -1)
    solved(inverse, features, 3 + 0.1 * torch.randn(100, 10, 16))
    inside = inverse.fc1(inverse.known(features)).detach()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    assert inside.mean().abs() < 0.2
    assert 0.3 < inside.std() < 1.0, "as of a linear layer that torch draws, on normal numbers"
    assert inverse(features).mean().item() == pytest.approx(3, abs=0.2)


def test_seeds_begin_by_the_same_moments_and_paper_networks_stay_as_they_are_built() -> None:
    model = build_small("detr")
    plans = make_plans(model, ["backbone=ridge"])
    task = Modular(model, build_chains(model, plans, [0, 1]))
    assert {key.entry for key in task.computed} == {"backbone"}
    images = random_images(model, batch=6)
    batch = Batch(images, tuple("abcdef"), ())
    begin(model, task.computed | task.networks, iter([batch, batch]), 6, Processes(), print_nothing)
    one, two = (task.computed[Key(seed, "backbone")] for seed in (0, 1))
    assert_rounding(dict(one.state_dict()), dict(two.state_dict()))
    assert one.get_buffer("weight").abs().max() > 0
    fine = nn.functional.mse_loss(one.eval()(model.run(images)["backbone"]), images)
    assert fine < (images - images.mean(0)).square().mean()


# ---- runs


def test_a_run_in_closed_form_needs_no_training(tmp_path: Path) -> None:
    given: dict[str, Any] = {"seeds": 1, "batch_size": 8, "workers": 0, "precision": "fp32"}
    given |= {
        "max_validation": 8,
        "max_test": 32,
        "recipe": "ridge",
        "inverse": ("backbone=ridge:images=64,reads=token", "encoder=ridge:images=64"),
    }
    bs.train("zoo/vit-prior", out=tmp_path / "run", data="world:prior:single", **given)
    ensemble = bs.ChainEnsemble.from_pretrained(tmp_path / "run")
    assert {plan.inverse for plan in ensemble.chains[0].plans.values()} == {"ridge"}
    card = (tmp_path / "run" / "card.md").read_text()
    assert "- recipe: ridge" in card
    assert "- steps: 0" in card
    error = float(next(line for line in card.splitlines() if line.startswith("| backbone")).split("|")[2])
    assert error < 0.1


def test_every_stage_gets_one_and_what_is_asked_for_stays(tmp_path: Path) -> None:
    model, given = build_small("detr"), {"out": tmp_path / "run", "recipe": "ridge", "workers": 0, "seeds": 1}
    for changes, inverse in (((), "ridge"), (("encoder=encoder:depth=1,heads=2",), "encoder")):
        (chain,) = make_task(model, TrainOptions(**given, inverse=changes)).chains
        assert chain.entries == model.stages
        assert [chain.plans[name].inverse for name in model.stages] == ["ridge", inverse, "ridge", "ridge"]


def test_the_chain_ends_before_a_stage_that_would_take_too_much(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_small("detr")
    monkeypatch.setattr("backsight.inverses.ridge.MOST_TOGETHER", 200)
    options = TrainOptions(out=tmp_path / "run", recipe="ridge", workers=0, seeds=1, inverse=("backbone=local",))
    assert make_task(model, options).chains[0].entries == ["backbone"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.records[0].getMessage().startswith("encoder: the inverse 'ridge' does not fit here: it would read")


def test_moments_are_added_up_in_float64() -> None:
    moments = Moments()
    for _ in range(100):
        moments.add(
            torch.ones(1, 4, 2), torch.full((1, 4, 3), 1e4) + torch.tensor([0.0, 1.0, -1.0, 0.0])[None, :, None]
        )
    assert_rounding(moments.target.mean, torch.full((3,), 1e4))
    torch.testing.assert_close(moments.target.std, torch.full((3,), 0.5**0.5), rtol=1e-4, atol=0)

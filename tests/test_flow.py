"""Inverses that sample: draws of a model whose answers are known, chains of them, and what an experiment finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from backsight.chain import ChainEnsemble, InverseChain, build_chain
from backsight.core import IMAGE, Key, Pixels, Site, Spec, Stage, UserError
from backsight.data import load_images, open_data
from backsight.engine import StagedModel
from backsight.experiments import EXPERIMENTS
from backsight.experiments.ambiguity import covered, fine_power, hue_covered, nominal_of, object_errors
from backsight.experiments.subject import Subject
from backsight.figures import image_png
from backsight.inverses import Flow, build_inverse
from backsight.io import write_bytes
from backsight.options import TrainOptions
from backsight.perturb import hue_unit
from backsight.report.reconstruct import reconstruct
from backsight.tasks import make_plans, make_task
from backsight.training.updates import Updates, schedule
from known_chains import check_contract, random_subject
from marks import quick
from numerics import assert_rounding, assert_same_weights
from small import build_small, random_images
from test_inverses import CASES

FLOWS = ("backbone@flow=flow:width=8,depth=2,steps=2", "encoder@flow=flow:depth=1,steps=2")
SMALL = ("backbone=local:depth=1", "encoder=encoder:depth=1", "decoder=decoder:depth=1", *FLOWS)


def small_chain(model: StagedModel, seed: int = 0, changes: tuple[str, ...] = SMALL) -> InverseChain:
    """Random inverses; flows whose last layers are not zero, so that noise is not all that they give."""
    chain = build_chain(model, make_plans(model, changes), seed).eval()
    torch.manual_seed(seed)
    for _, inverse in chain.items():
        if isinstance(inverse, Flow):
            for network in (inverse.mean, inverse.velocity):
                nn.init.normal_(network.end.weight, std=0.05)
    return chain


@pytest.fixture(scope="module")
def chain(detr: StagedModel) -> InverseChain:
    return small_chain(detr)


# ---- a known answer: features that drop one bit


class WithoutSign(nn.Module):
    """``B 3 8 8`` -> how far each channel is from grey, on a grid of 2 x 2: the sign is lost."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d((images - 0.5).abs(), 4)


def two_answers(count: int, seed: int = 0) -> Tensor:
    """Pictures of one grey each but for the red channel, which is as much above as it may be below: ``B 3 8 8``."""
    generator = torch.Generator().manual_seed(seed)
    sign = (torch.rand(count, generator=generator) < 0.5).float() * 2 - 1
    images = torch.full((count, 3, 8, 8), 0.5)
    images[:, 0] += (sign * (0.2 + 0.2 * torch.rand(count, generator=generator))).view(-1, 1, 1)
    return images


@pytest.fixture(scope="module")
def trained() -> tuple[StagedModel, Flow]:
    """A flow of few steps of training on that model, by the recipe of every run."""
    spec = Spec("toy", "features", (Stage("only", (Site("", pattern="b d h w"),)),))
    pixels = Pixels((8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    model = StagedModel(WithoutSign(), spec, pixels, name="toy")
    torch.manual_seed(0)
    flow = build_inverse("flow", model.layout("only"), model.layout(IMAGE), {"width": 32, "depth": 1})
    moments, steps = flow.moments(), 300
    moments.add(model.run(two_answers(64))["only"], two_answers(64))
    flow.begin(moments)
    updates = Updates(flow, "fast", 1e-2)
    for step in range(steps):
        images = two_answers(32, step + 1)
        flow(model.run(images)["only"], images).backward()
        updates.step(schedule("fast", step, step / steps))
    return model, flow.eval()


def test_draws_show_both_answers_in_equal_shares_and_the_mean_is_grey(trained: tuple[StagedModel, Flow]) -> None:
    model, flow = trained
    images, num = two_answers(8, 1000), 64
    features = model.run(images)["only"]
    noise = torch.randn(num * 8, *flow.noise_shape, generator=torch.Generator().manual_seed(1))
    draws = flow.sample(features.repeat(num, 1, 1), noise).unflatten(0, (num, 8))
    red, known = draws[:, :, 0].mean((2, 3)) - 0.5, (images[:, 0] - 0.5).abs().mean((1, 2))
    assert (red.abs() > 0.5 * known).float().mean() > 0.85, "few draws are in between"
    assert (red.abs() - known).abs().median() < 0.1
    assert 0.35 < float((red > 0).float().mean()) < 0.65  # of 512 draws
    for mean in (flow(features), draws.mean(0)):
        assert (mean[:, 0].mean((1, 2)) - 0.5).abs().max() < 0.12
    assert (draws[:, :, 1:] - 0.5).abs().mean() < 0.05, "what is settled is the same in all draws"


def test_the_inverse_without_noise_is_the_mean_of_its_draws(trained: tuple[StagedModel, Flow]) -> None:
    model, flow = trained
    features = model.run(two_answers(4, 7))["only"]
    noise = torch.randn(256 * 4, *flow.noise_shape, generator=torch.Generator().manual_seed(2))
    draws = flow.sample(features.repeat(256, 1, 1), noise).unflatten(0, (256, 4))
    apart = (draws.mean(0) - flow(features)).square().mean()
    assert apart < 0.1 * draws.var(0).mean()


# ---- the inverse


@pytest.mark.parametrize("case", CASES)
def test_it_samples_and_learns_for_every_layout(case: str) -> None:
    source, target = CASES[case]
    flow = build_inverse("flow", source, target, {"width": 8, "depth": 1, "steps": 2})
    features = torch.randn(2, source.tokens, source.width)
    shape = (3, *target.grid) if target.image else (target.tokens, target.width)
    draws = flow.sample(features, torch.randn(2, *flow.noise_shape))
    assert draws.shape == (2, *shape)
    assert draws.isfinite().all()
    counted = torch.ones(2, target.tokens, dtype=torch.bool)
    loss = flow(features, torch.rand(2, *shape), counted)
    loss.backward()
    assert loss.ndim == 0
    assert [name for name, weight in flow.named_parameters() if weight.grad is None] == []


def test_what_does_not_count_has_no_loss() -> None:
    source, target = CASES["tokens to tokens"]
    flow = build_inverse("flow", source, target, {"depth": 1}).eval()
    features, wanted = torch.randn(2, source.tokens, source.width), torch.randn(2, target.tokens, target.width)
    counted = torch.ones(2, target.tokens, dtype=torch.bool)
    counted[:, 7:] = False
    elsewhere = wanted.clone()
    elsewhere[:, 7:] += 1
    assert not torch.equal(flow(features, wanted), flow(features, elsewhere))
    flow.velocity.end.weight.data.zero_()
    assert_rounding(flow(features, wanted, counted), flow(features, elsewhere, counted))


def test_an_evaluation_takes_nothing_from_the_generator_of_training() -> None:
    source, target = CASES["tokens to tokens"]
    flow = build_inverse("flow", source, target, {"depth": 1}).eval()
    features, wanted = torch.randn(4, source.tokens, source.width), torch.randn(4, target.tokens, target.width)
    before, variance = torch.get_rng_state(), flow.running_var.clone()
    assert torch.equal(flow(features, wanted), flow(features, wanted))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(flow.running_var, variance)
    flow.train()
    assert not torch.equal(flow(features, wanted), flow(features, wanted))


def test_more_steps_and_two_looks_come_nearer_to_the_way_of_the_flow() -> None:
    torch.manual_seed(0)
    flow = build_inverse("flow", *CASES["tokens to tokens"], {"depth": 1}).eval()
    nn.init.normal_(flow.velocity.end.weight, std=0.05)
    features, noise = torch.randn(2, 15, 48), torch.randn(2, 15, 48)
    exact = flow.sample(features, noise, steps=200)
    errors = {}
    for method in ("euler", "heun"):
        flow.method = method
        errors[method] = [float((flow.sample(features, noise, steps) - exact).square().mean()) for steps in (4, 16)]
    assert errors["euler"][1] < errors["euler"][0]
    assert errors["heun"][1] < errors["heun"][0]
    assert errors["heun"][1] < errors["euler"][1]


# ---- in a run


def test_it_is_trained_beside_the_mean_on_its_own_component_alone(tmp_path: Path) -> None:
    model = build_small("detr")
    options = TrainOptions(data="world:prior", out=tmp_path, inverse=SMALL, seeds=1, steps=1)
    task = make_task(model, options)
    key = Key(0, "encoder", "flow")
    losses = {name: (loss, networks) for name, loss, networks in task.losses(random_images(model))}
    loss, networks = losses[key]
    assert networks == (key,)
    loss.backward()
    reached = {name for name, each in task.networks.items() if any(w.grad is not None for w in each.parameters())}
    assert reached == {key}


@pytest.mark.parametrize("kind", ["classic", "joint"])
def test_other_tasks_refuse_it(kind: str, tmp_path: Path) -> None:
    given = {"trade_off": 0.5} if kind == "joint" else {}
    options = TrainOptions(
        data="world:prior", out=tmp_path, task=kind, inverse=("encoder=flow",), seeds=1, steps=1, **given
    )
    with pytest.raises(UserError, match="'encoder' is a flow"):
        make_task(build_small("detr"), options)


# ---- chains that sample


def test_the_same_seed_gives_the_same_draws(chain: InverseChain, detr: StagedModel) -> None:
    trace = detr.run(random_images(detr))
    draws = chain.sample(trace, "decoder", draws=3, seed=5)
    assert draws.shape == (3, *trace.images.shape)
    assert draws.min() >= 0
    assert draws.max() <= 1
    assert torch.equal(draws, chain.sample(trace, "decoder", draws=3, seed=5))
    assert not torch.equal(draws, chain.sample(trace, "decoder", draws=3, seed=6))
    assert not torch.equal(draws[0], draws[1])
    assert_rounding(chain.sample(trace, "decoder", draws=11, seed=5)[:3], draws)
    alone = chain.sample(trace["decoder"][:1], "decoder", draws=3, seed=5)
    assert_rounding(alone, draws[:, :1], 1e-4)


def test_a_mixed_chain_samples_where_it_is_told_to(chain: InverseChain, detr: StagedModel) -> None:
    trace = detr.run(random_images(detr))
    assert chain.samplers() == {"backbone": "flow", "encoder": "flow"}
    features = chain.sample(trace, "decoder", to="backbone", via={"encoder": "flow"}, draws=2)
    assert features.shape == (2, *trace["backbone"].shape)
    images = chain.sample(trace, "decoder", via={"encoder": "flow"}, draws=2)
    assert_rounding(images[1], chain.inverses["backbone"](features[1]))
    below = chain.sample(trace, "decoder", via={"backbone": "flow"}, draws=2)
    assert not torch.equal(below[0], below[1])
    with pytest.raises(UserError, match="no inverse of prediction, decoder, encoder, backbone samples"):
        chain.sample(trace, "prediction", via={})
    assert_rounding(chain.sample(trace, "encoder@flow", draws=2), chain.sample(trace, "encoder", draws=2))


def test_an_ensemble_samples_by_every_seed(chain: InverseChain, detr: StagedModel) -> None:
    ensemble, trace = ChainEnsemble([chain, small_chain(detr, 1)]), detr.run(random_images(detr))
    draws = ensemble.sample(trace, "encoder", draws=2, seed=3)
    assert draws.shape == (2, 2, *trace.images.shape)
    assert torch.equal(draws[0], chain.sample(trace, "encoder", draws=2, seed=3))
    assert ensemble.samplers() == chain.samplers()
    assert ensemble.drawing.chains == ensemble.chains


def test_flows_may_be_there_for_one_seed_alone(chain: InverseChain, detr: StagedModel, tmp_path: Path) -> None:
    without = small_chain(detr, 1, SMALL[:3])
    ensemble = ChainEnsemble([chain, without])
    assert ensemble.entries == without.entries
    assert ensemble.drawing.chains == [chain]
    subject = Subject(detr, ensemble, open_data("world:prior", detr.pixels).test, num_images=2)
    result = EXPERIMENTS["ambiguity"].measure(subject, num_draws=2, num_pictures=1)
    assert result.one(stage="encoder", metric="mse", of="mean inverse").values.shape == (1, 2)
    for each in ensemble.chains:
        each.save(tmp_path / "run/chains" / str(each.seed))
    write_bytes(tmp_path / "0.png", image_png(random_images(detr)[0]))
    seen = reconstruct(tmp_path / "run", [tmp_path / "0.png"], tmp_path / "out", model=detr, draws=2)
    first = str(seen.values_of("image")[0])
    assert [str(each.labels["row"]) for each in seen.shown(image=first, stage="encoder")] == ["seed 0", "seed 1"]
    assert [str(each.labels["row"]) for each in seen.shown(image=f"{first}, draw 1", stage="encoder")] == ["seed 0"]


def test_a_saved_chain_draws_the_same(chain: InverseChain, detr: StagedModel, tmp_path: Path) -> None:
    trace = detr.run(random_images(detr))
    again = InverseChain.from_pretrained(chain.save(tmp_path))
    assert_same_weights(again, chain)
    assert_rounding(again.sample(trace, "decoder", draws=2), chain.sample(trace, "decoder", draws=2), 1e-4)


# ---- the experiment


def test_a_truth_that_is_one_more_draw_is_covered_as_often_as_is_said() -> None:
    generator = torch.Generator().manual_seed(0)
    for num in (9, 19, 39):
        values = torch.rand(1, num + 1, 4000, generator=generator)
        found = covered(values[0, 0], values[:, 1:]).mean()
        assert float(found) == pytest.approx(nominal_of(num), abs=0.02)
        hues = hue_unit(40 * torch.randn(1, num + 1, 4000, generator=generator) + 170)  # across the end of the circle
        assert float(hue_covered(hues[0, 0], hues[:, 1:]).mean()) == pytest.approx(nominal_of(num), abs=0.02)
    assert nominal_of(19) == pytest.approx(0.9)
    draws = torch.linspace(0.4, 0.6, 19)[None, :, None]
    assert covered(torch.tensor([0.5]), draws).item() == 1
    assert covered(torch.tensor([0.7]), draws).item() == 0
    assert hue_covered(hue_unit(torch.tensor([180.0])), hue_unit(10 * draws)).item() == 0


def test_whole_objects_of_draws_err_as_much_as_the_truth_where_it_is_one_more_draw() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :4], masks[1, 6:, 6:] = True, True
    colours = torch.randn(500, 20, 3, 1, 1, generator=generator).expand(-1, -1, -1, 8, 8)
    grain = torch.randn(500, 20, 3, 8, 8, generator=generator)
    of_areas = (1 / 32 + 1 / 4) / 2  # the variance of the mean of so much grain
    grainy = (1 + of_areas / 19) / (of_areas * (1 + 1 / 18))
    for of_objects, of_grain, ratio in ((1.0, 0.0, 1.0), (0.0, 1.0, grainy)):
        draws = of_objects * colours + of_grain * grain
        truths = colours[:, 0] if of_objects else draws.new_ones(500, 3, 8, 8)
        found = [object_errors(truth, own[None, 1:], masks) for truth, own in zip(truths, draws, strict=True)]
        mean = {of: torch.stack([each[of] for each in found]).mean().item() for of in found[0]}
        assert mean["truth"] / mean["draw"] == pytest.approx(ratio, rel=0.15)


def test_a_blurred_picture_has_less_fine_detail() -> None:
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    blurred = nn.functional.avg_pool2d(images, 5, 1, 2)
    assert (fine_power(blurred) < 0.2 * fine_power(images)).all()


@pytest.mark.parametrize("family", quick(["detr", "vit"], "detr"))
def test_ambiguity_measures_every_stage_below_which_something_samples(family: str, tmp_path: Path) -> None:
    flows = ("backbone@flow=flow:width=8,depth=1,steps=1", *(FLOWS[1:] if family == "detr" else ()))
    subject = random_subject(family, inverses=flows, num_images=3)
    result = check_contract("ambiguity", [subject], tmp_path, num_draws=4, num_pictures=1)
    assert result.values_of("stage") == [*subject.stages, "input"]
    for stage in subject.stages:
        for of in ("draw", "mean inverse", "mean of draws"):
            assert result.one(stage=stage, metric="mse", of=of).values.shape == (2, 3)
        assert 0 < result.one(stage=stage, metric="spread").mean() < 1
        for name in ("hue", "brightness"):
            assert 0 <= result.one(stage=stage, metric=f"{name} covered").mean() <= 1
    own = result.select(metric="own spread")
    assert [each.labels["stage"] for each in own] == [
        stage for stage in subject.stages if f"{stage}@flow=" in str(flows)
    ]


def test_without_an_inverse_that_samples_one_line_says_so() -> None:
    subject = random_subject("vit")
    reason = EXPERIMENTS["ambiguity"].fits(subject)
    assert "no inverse of small vit samples" in reason
    assert "\n" not in reason
    with pytest.raises(UserError, match="samples"):
        EXPERIMENTS["ambiguity"].measure(subject)


# ---- pictures of a user's own


def test_draws_stand_under_each_picture(chain: InverseChain, detr: StagedModel, tmp_path: Path) -> None:
    chain.save(tmp_path / "run" / "chains" / "0")
    images = random_images(detr)
    for index, image in enumerate(images):
        write_bytes(tmp_path / f"{index}.png", image_png(image))
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    result = reconstruct(tmp_path / "run", files, tmp_path / "out", model=detr, draws=2)
    names = [str(each) for each in result.values_of("image")]
    rows = ["", ", draw 1", ", draw 2", ", draws differ"]
    assert [name.removeprefix(str(tmp_path)).lstrip("/") for name in names] == [
        f"{index}.png{row}" for index in (0, 1) for row in rows
    ]
    for name in names:
        assert {str(each.labels["stage"]) for each in result.shown(image=name)} == {"input", *chain.entries}
    draws = [result.shown(image=f"{names[0]}, draw {number}", stage="encoder")[0].image for number in (1, 2)]
    assert not torch.equal(*draws)
    expected = chain.sample(detr.run(load_images(files, detr.pixels).images), "encoder", draws=2)[:, 0]
    assert_rounding(torch.stack(draws), (expected * 255).round() / 255, 1.01 / 255)
    assert (tmp_path / "out" / "report.html").is_file()
    small = build_chain(detr, make_plans(detr, SMALL[:3]), 0).eval()
    small.save(tmp_path / "mean" / "chains" / "0")
    with pytest.raises(UserError, match="samples: leave out draws"):
        reconstruct(tmp_path / "mean", files, tmp_path / "other", model=detr, draws=2)


# ---- noise


def test_noise_of_images_has_the_spectrum_of_what_the_mean_leaves() -> None:
    flow = build_inverse("flow", *CASES["stride 4"], {"width": 8, "depth": 1}).train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        images = nn.functional.avg_pool2d(torch.rand(16, 3, 40, 32, generator=generator) - 0.5, 5, 1)
        flow._follow(flow._wanted(images))
    white = torch.randn(200, *flow.noise_shape, generator=generator)
    noise = flow._coloured(white)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    pictures = (images, noise, white)
    share = [float(fine_power(each).mean() / each.square().sum((1, 2, 3)).mean()) for each in pictures]
    assert share[1] == pytest.approx(share[0], rel=0.3)
    assert share[2] > 2 * share[0]

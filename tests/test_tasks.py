"""Tasks: which inverses are trained, and equation 1, each loss for its own network alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backsight.chain import Plan, build_chain
from backsight.core import IMAGE, Key, Pixels, UserError, split_entry
from backsight.engine import StagedModel
from backsight.inverses import INVERSES
from backsight.tasks import Modular, build_chains, component_loss, learning_rate, make_plans
from backsight.tasks.modular import noised
from numerics import assert_rounding
from small import random_images

# ---- plans


def test_a_family_names_an_inverse_for_every_stage(model: StagedModel) -> None:
    plans = make_plans(model)
    assert [entry for entry in plans if "@" not in entry] == model.stages
    for entry, plan in plans.items():
        stage, variant = split_entry(entry)
        assert (plan.inverse, plan.options) == model.spec.stage(stage).inverses[variant]
        assert plan.learning_rate is None


DECODER = {"depth": 2, "heads": 2, "feedforward": 48}
ENCODER = {"depth": 2, "heads": 2, "feedforward": 48}


@pytest.mark.parametrize(
    ("change", "entry", "expected"),
    [
        ("backbone=local", "backbone", Plan("local")),
        ("backbone=deconvolution:expansion=2", "backbone", Plan("deconvolution", {"expansion": 2})),
        ("backbone=deconvolution:batch_norm=false", "backbone", Plan("deconvolution", {"batch_norm": False})),
        ("backbone=deconvolution:learning_rate=1e-3", "backbone", Plan("deconvolution", {}, 1e-3)),
        ("backbone=patch:widths=[8,8],whole=no", "backbone", Plan("patch", {"widths": [8, 8], "whole": False})),
        ("encoder=encoder:depth=1", "encoder", Plan("encoder", {**ENCODER, "depth": 1})),  # the others stay
        ("encoder=blocks:depth=1", "encoder", Plan("blocks", {"depth": 1})),  # those of another inverse do not
        ("backbone@local=local:depth=0,learning_rate=0.01", "backbone@local", Plan("local", {"depth": 0}, 0.01)),
        ("decoder@deep=decoder:depth=4", "decoder@deep", Plan("decoder", {**DECODER, "depth": 4})),
        ("decoder=decoder:input_noise=0.3", "decoder", Plan("decoder", DECODER, None, 0.3)),
        ("prediction@onehot=none", "prediction@onehot", None),
    ],
)
def test_a_change_makes_a_plan(detr: StagedModel, change: str, entry: str, expected: Plan | None) -> None:
    before, after = make_plans(detr), make_plans(detr, [change])
    assert after.get(entry) == expected
    assert {name: plan for name, plan in after.items() if name != entry} == {
        name: plan for name, plan in before.items() if name != entry
    }


def test_plans_are_in_the_order_of_the_stages(detr: StagedModel) -> None:
    changes = ["encoder@b=encoder", "prediction@a=prediction", "encoder@a=encoder", "decoder=none"]
    assert list(make_plans(detr, changes)) == [
        *("backbone", "encoder", "encoder@a", "encoder@b"),
        *("prediction", "prediction@a", "prediction@onehot"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("backbone", "stage=inverse"),
        ("backbone=", "stage=inverse"),
        ("=local", "stage=inverse"),
        ("nose=local", "no stage 'nose'"),
        ("backbone@=local", "names no inverse"),
        ("backbone@a.b=local", "names no inverse"),
        ("backbone@../x=local", "names no inverse"),
        ("backbone=local:depth", "'depth'"),
        ("backbone=patch:widths=[8", r"widths is '\[8"),
        ("backbone=local:learning_rate=fast", "learning_rate is"),
        ("backbone=local:learning_rate=0", "learning_rate is"),
        ("backbone=local:learning_rate=.nan", "learning_rate is"),
        ("prediction=none", "leave prediction in"),
    ],
)
def test_a_wrong_change_is_refused(detr: StagedModel, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plans(detr, [change])


@pytest.mark.parametrize("change", ["backbone=nose", "backbone=local:nose=1", "encoder=prediction"])
def test_a_plan_that_does_not_fit_is_refused_when_it_is_built(detr: StagedModel, change: str) -> None:
    with pytest.raises(UserError, match=r"no inverse 'nose'|has no 'nose'|does not fit here"):
        build_chain(detr, make_plans(detr, [change]), seed=0)


def test_a_learning_rate_is_the_plan_s_or_the_inverse_s(detr: StagedModel) -> None:
    plans = make_plans(detr, ["encoder=encoder:learning_rate=0.5"])
    task = Modular(detr, build_chains(detr, plans, [4, 5]))
    expected = {entry: INVERSES[plan.inverse].learning_rate for entry, plan in plans.items()} | {"encoder": 0.5}
    assert task.learning_rates == {Key.of(seed, entry): rate for seed in (4, 5) for entry, rate in expected.items()}
    assert learning_rate(Plan("local", {}, 0.25), torch.nn.Linear(1, 1)) == 0.25


# ---- equation 1


def by_hand(model: StagedModel, network: torch.nn.Module, stage: str, images: Tensor) -> Tensor:
    """The mean of the squared differences between an inverse's output and the true features before it."""
    trace = model.run(images)
    output = network(trace[stage])
    target = trace[([IMAGE, *model.stages])[model.stages.index(stage)]]
    difference = output - target
    if stage == model.stages[0]:
        difference = difference / torch.tensor(model.pixels.std)[:, None, None]
    return (difference**2).mean()


def test_each_loss_is_equation_1_and_trains_its_own_network_alone(model: StagedModel) -> None:
    task = Modular(model, build_chains(model, make_plans(model), [0, 1]))
    images = random_images(model)
    keys = []
    for key, loss, networks in task.losses(images):
        keys.append(key)
        torch.testing.assert_close(loss, by_hand(model, task.networks[key], key.stage, images))
        loss.backward()
        trained = [
            each
            for each, network in task.networks.items()
            if any(parameter.grad is not None for parameter in network.parameters())
        ]
        assert trained == [key] == list(networks)
        task.networks[key].zero_grad()
    assert keys == list(task.networks) == [Key.of(seed, entry) for seed in (0, 1) for entry in make_plans(model)]
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_one_inverse_s_errors_reach_no_other(detr: StagedModel) -> None:
    chains = build_chains(detr, make_plans(detr), [0])
    images = random_images(detr)
    before = {key: loss.item() for key, loss, _ in Modular(detr, chains).losses(images)}
    with torch.no_grad():
        for parameter in chains[0].inverses["encoder"].parameters():
            parameter.mul_(2)
    after = {key: loss.item() for key, loss, _ in Modular(detr, chains).losses(images)}
    assert {key for key in before if before[key] != after[key]} == {Key(0, "encoder")}


def test_noise_is_on_what_one_inverse_reads_while_it_is_trained(detr: StagedModel) -> None:
    noisy, plain = (
        Modular(detr, build_chains(detr, make_plans(detr, change), [0]))
        for change in (["decoder=decoder:input_noise=0.3"], [])
    )
    images = torch.rand(2, 3, *detr.pixels.size, generator=torch.manual_seed(1))
    for training in (True, False):
        noisy.train(training)
        plain.train(training)
        given, true = ({key.entry: loss.item() for key, loss, _ in task.losses(images)} for task in (noisy, plain))
        assert [entry for entry in true if given[entry] != true[entry]] == (["decoder"] if training else [])


def test_the_noise_is_in_standard_deviations_of_each_feature() -> None:
    features = torch.randn(40, 50, 3, generator=torch.manual_seed(0)) * torch.tensor([0.1, 1.0, 0.0]) + 5
    added = noised(features, 0.3) - features
    assert_rounding(added.flatten(0, 1).std(0), torch.tensor([0.03, 0.3, 0.0]), 0.02)


def test_an_inverse_that_is_computed_is_not_trained(vit: StagedModel) -> None:
    plans = make_plans(vit, ["backbone@analytic=analytic"])
    task = Modular(vit, build_chains(vit, plans, [0]))
    assert set(plans) - {key.entry for key in task.networks} == {"backbone@analytic"}


def test_the_loss_of_images_is_in_the_model_s_own_space() -> None:
    pixels = Pixels((2, 2), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    black, grey = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    expected = (1.0**2 + 2.0**2 + 4.0**2) / 3
    assert component_loss(grey, black, IMAGE, pixels).item() == pytest.approx(expected)
    assert component_loss(grey, black, "encoder", pixels).item() == pytest.approx(0.25)

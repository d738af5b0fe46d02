"""Classic and joint training: which loss teaches which weights, and equation 3 by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backsight.chain import InverseChain
from backsight.core import IMAGE, UserError
from backsight.data import Target
from backsight.models import duplicate
from backsight.options import Update
from backsight.staging import StagedModel
from backsight.tasks import UPDATES, Classic, Joint, Modular, answer, build_chains, make_plans
from backsight.tasks.joint import scale_gradient
from backsight.tasks.task import Task, entry_loss, image_loss
from backsight.train.updates import Updates
from small import random_images

STAGE = {"detr": "decoder", "vit": "encoder"}
PATH = {"detr": ["decoder", "encoder", "backbone"], "vit": ["encoder", "backbone"]}


def target(boxes: list[list[float]], labels: list[int], label: int) -> Target:
    """Objects none of which is a crowd, and the class of the whole image."""
    return Target(torch.tensor(boxes), torch.tensor(labels), None, torch.zeros(len(labels), dtype=torch.bool), label)


TARGETS = (target([[4, 6, 40, 60], [50, 2, 90, 30]], [0, 3], 1), target([[10, 10, 30, 20]], [2], 4))


@pytest.fixture(params=["detr", "vit"])
def model(request: pytest.FixtureRequest, small_model: Callable[[str], StagedModel]) -> StagedModel:
    return small_model(request.param)


def chains_of(model: StagedModel, seeds: Sequence[int] = (0,)) -> list[InverseChain]:
    return build_chains(model, make_plans(model), seeds)


def joint(model: StagedModel, trade_off: float, update: Update = "chain", seeds: Sequence[int] = (0,)) -> Joint:
    return Joint(model, chains_of(model, seeds), STAGE[model.spec.family], trade_off, update)


def gradients(task: Task, images: Tensor, only: Iterable[str] = ()) -> dict[str, dict[str, Tensor]]:
    """Go down every loss that changes something (or those in ``only``), and give all gradients by network."""
    for name, loss in task.losses(images, None, TARGETS):
        if task.covers[name] and (not only or name in only):
            loss.backward()
    return {name: gradients_of(network) for name, network in task.networks.items()}


def gradients_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: each.grad for name, each in network.named_parameters() if each.grad is not None}


def by_hand(model: StagedModel, loss: Callable[[StagedModel], Tensor]) -> dict[str, Tensor]:
    """The gradient of ``loss`` of a copy of ``model``, by parameter."""
    copy = duplicate(model)
    copy.module.requires_grad_(True)
    loss(copy).backward()
    return gradients_of(copy.module)


def assert_mixed(found: Mapping[str, Tensor], parts: Sequence[tuple[float, Mapping[str, Tensor]]]) -> None:
    """``found`` is the weighted sum of the gradients in ``parts``."""
    names = {name for weight, part in parts if weight for name in part}
    assert names
    for name in names | found.keys():
        expected = sum(weight * part[name] for weight, part in parts if name in part)
        torch.testing.assert_close(found.get(name, torch.zeros(())), torch.as_tensor(expected), rtol=1e-3, atol=1e-6)


def objective(copy: StagedModel, images: Tensor) -> Tensor:
    return answer(copy, images, (), TARGETS)[1]


def chain_error(copy: StagedModel, chain: InverseChain, images: Tensor) -> Tensor:
    stage = STAGE[copy.spec.family]
    return image_loss(copy, chain, copy.answer(images, [stage])[stage], stage, images)


# ---- equation 3


@pytest.mark.parametrize("trade_off", [0.0, 0.1, 0.9, 1.0])
def test_the_forward_model_sees_lambda_of_the_one_and_the_rest_of_the_other(model: StagedModel, trade_off: float):
    task, images = joint(model, trade_off), random_images(model)
    found = gradients(task, images)["0/forward"]
    error = by_hand(model, lambda copy: chain_error(copy, task.chains[0], images))
    own = by_hand(model, lambda copy: objective(copy, images))
    assert_mixed(found, [(trade_off, error), (1 - trade_off, own)])


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("trade_off", [0.0, 0.9])
def test_the_inverses_see_the_reconstruction_alone_whatever_lambda_is(
    model: StagedModel, update: Update, trade_off: float
):
    images, stage, path = random_images(model), STAGE[model.spec.family], PATH[model.spec.family]
    found = gradients(joint(model, trade_off, update), images)
    copy, (chain,) = duplicate(model), chains_of(model)
    # Where gradients are asked for other kernels run, whose last bits small models amplify.
    copy.module.requires_grad_(update != "backwards-only")
    features = {name: each.detach() for name, each in copy.answer(images, model.stages).features.items()}
    features[IMAGE] = images
    if update in ("chain", "backwards-only"):
        image_loss(model, chain, features[stage], stage, images).backward()
    else:
        for entry in path:
            entry_loss(model, chain.inverses[entry], entry, features).backward()
    for entry in path:
        assert_mixed(found[f"0/{entry}"], [(1.0, gradients_of(chain.inverses[entry]))])


def test_the_loss_that_is_told_is_equation_3(model: StagedModel):
    for update in UPDATES:
        losses = joint(model, 0.3, update).losses(random_images(model), None, TARGETS)
        told = {name: loss.item() for name, loss in losses}
        parts = ["backbone"] if update == "isolated" else PATH[model.spec.family] if update == "sum" else [IMAGE]
        error = sum(told[f"0/{name}"] for name in parts)
        assert told["0/joint"] == pytest.approx(0.3 * error + 0.7 * told["0/task"] + error, rel=1e-5)


def test_at_lambda_1_the_task_s_gradient_is_zero(model: StagedModel):
    heads = {"detr": ("class_labels_classifier", "bbox_predictor"), "vit": ("head.", "norm.")}[model.spec.family]
    found = gradients(joint(model, 1.0), random_images(model))["0/forward"]
    assert found
    assert not any(name.startswith(heads) for name in found)


def test_at_lambda_0_the_reconstruction_s_gradient_is_zero(model: StagedModel):
    images = random_images(model)
    task = joint(model, 0.0)
    unknown = tuple(Target() for _ in TARGETS)  # so that the task has no gradient either
    for name, loss in task.losses(images, None, unknown):
        if task.covers[name]:
            loss.backward()
    assert gradients_of(task.networks["0/forward"]) == {}


# ---- update modes


def reached(model: StagedModel, update: Update) -> set[str]:
    """The parts of the forward model that the reconstruction alone (lambda 1) teaches."""
    found = gradients(joint(model, 1.0, update), random_images(model)).get("0/forward", {})
    depth = 2 if model.spec.family == "detr" else 1
    return {".".join(name.split(".")[:depth]) for name, each in found.items() if each.any()}


DETR_FRONT = {"model.backbone", "model.input_projection"}


@pytest.mark.parametrize(
    ("update", "detr", "vit"),
    [
        ("chain", {*DETR_FRONT, "model.encoder", "model.decoder", "model.query_position_embeddings"}, {"blocks"}),
        ("sum", {*DETR_FRONT, "model.encoder", "model.decoder", "model.query_position_embeddings"}, {"blocks"}),
        ("isolated", DETR_FRONT, set()),
        ("backwards-only", set(), set()),
    ],
)
def test_how_far_a_reconstruction_s_gradient_reaches(
    update: Update, detr: set[str], vit: set[str], small_model: Callable[[str], StagedModel]
):
    assert reached(small_model("detr"), update) == detr
    front = set() if update == "backwards-only" else {"cls_token", "patch_embed", "pos_embed"}
    found = reached(small_model("vit"), update)
    assert found - {"cls_token"} == (vit | front) - {"cls_token"}


def test_isolated_inverses_teach_themselves_alone(model: StagedModel):
    task, images = joint(model, 0.9, "isolated"), random_images(model)
    first, *_ = others = [f"0/{entry}" for entry in PATH[model.spec.family][:-1]]
    found = gradients(task, images, only=others)
    assert {name for name, each in found.items() if each} == set(others)
    assert task.covers[first] == (first,)
    assert task.covers["0/joint"] == ("0/forward", "0/backbone")


def test_a_sum_s_features_are_targets_too(small_model: Callable[[str], StagedModel]):
    """The gradient of |x - inverse(y)| reaches x itself, not y alone."""
    model = small_model("vit")
    task, images = joint(model, 1.0, "sum"), random_images(model)
    chain = task.chains[0]

    def total(copy: StagedModel) -> Tensor:
        trace = copy.answer(images, ["backbone", "encoder"])
        local = (chain.inverses["encoder"](trace["encoder"]) - trace["backbone"]).square().mean()
        return local + image_loss(copy, chain, trace["backbone"], "backbone", images)

    assert_mixed(gradients(task, images)["0/forward"], [(1.0, by_hand(model, total))])


def test_backwards_only_leaves_the_forward_model_out(model: StagedModel):
    task = joint(model, 0.5, "backwards-only")
    assert "0/forward" not in task.networks
    gradients(task, random_images(model))
    assert gradients_of(task.forward_model(0).module) == {}


@pytest.mark.parametrize("update", UPDATES)
def test_every_loss_is_named_beforehand_and_every_network_is_covered_once(model: StagedModel, update: Update):
    task = joint(model, 0.5, update, seeds=(3, 4))
    assert [name for name, _ in task.losses(random_images(model), None, TARGETS)] == list(task.covers)
    covered = [network for each in task.covers.values() for network in each]
    assert sorted(covered) == sorted(task.networks)
    assert {network.partition("/")[0] for network in task.networks} == {"3", "4"}


# ---- seeds, copies, what is judged


def test_every_seed_trains_a_copy_and_the_model_stays_as_it_was(model: StagedModel):
    before, task = model.digest(), joint(model, 0.5, seeds=(0, 1))
    updates = Updates(task.networks, dict.fromkeys(task.networks, 0.01), task.covers, task.clips)
    images = random_images(model)
    for name, loss in task.losses(images, None, TARGETS):
        updates.apply(name, loss, 1.0)
    digests = [task.forward_model(seed).digest() for seed in (0, 1)]
    assert model.digest() == before
    assert len({before, *digests}) == 3
    assert not any(each.requires_grad for each in model.module.parameters())


def test_a_forward_model_stays_in_evaluation_mode(model: StagedModel):
    task = joint(model, 0.5)
    task.train(True)
    assert not any(module.training for module in task.forward_model(0).module.modules())
    assert all(network.training for name, network in task.networks.items() if name != "0/forward")
    task.train(False)
    assert not any(network.training for network in task.networks.values())


def test_the_networks_of_a_seed_are_judged_together(model: StagedModel):
    task = joint(model, 0.5, "isolated", seeds=(0, 1))
    losses = {name: index + 1.0 for index, name in enumerate(task.covers)}
    errors = task.errors(losses)
    for seed in ("0", "1"):
        own = [losses[name] for name, covered in task.covers.items() if covered and name.startswith(f"{seed}/")]
        assert {errors[name] for name in task.networks if name.startswith(f"{seed}/")} == {sum(own)}
    modular = Modular(model, chains_of(model))
    assert modular.errors({"0/backbone": 2.0, "0/encoder": 3.0}) == {"0/backbone": 2.0, "0/encoder": 3.0}


# ---- classic


def test_classic_of_the_first_stage_is_modular(model: StagedModel):
    images = random_images(model)
    classic, modular = Classic(model, chains_of(model), "backbone"), Modular(model, chains_of(model))
    assert list(classic.networks) == ["0/backbone"]
    ours, theirs = dict(classic.losses(images))["0/image"], dict(modular.losses(images))["0/backbone"]
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours, theirs = gradients(classic, images)["0/backbone"], gradients(modular, images)["0/backbone"]
    assert_mixed(ours, [(1.0, theirs)])


def test_classic_teaches_every_inverse_on_the_way_and_no_other(model: StagedModel):
    task = Classic(model, chains_of(model, (0, 1)), STAGE[model.spec.family])
    path = PATH[model.spec.family]
    assert set(task.networks) == {f"{seed}/{entry}" for seed in (0, 1) for entry in path}
    found = gradients(task, random_images(model), only=["1/image"])
    assert {name for name, each in found.items() if each} == {f"1/{entry}" for entry in path}
    assert all(each.grad is None for each in model.module.parameters())


def test_a_stage_that_no_inverse_leads_from_is_named(small_model: Callable[[str], StagedModel]):
    model = small_model("detr")
    chains = build_chains(model, {name: plan for name, plan in make_plans(model).items() if name != "encoder"}, [0])
    with pytest.raises(UserError, match="no inverse 'encoder'"):
        Classic(model, chains, "decoder")


# ---- one step for several networks


def linear(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def test_one_step_changes_what_its_loss_covers_and_clips_each_apart():
    networks: dict[str, nn.Module] = {"a": linear(1.0), "b": linear(2.0), "c": linear(3.0)}
    updates = Updates(networks, dict.fromkeys(networks, 0.1), {"both": ("a", "b"), "told": (), "c": ("c",)}, {"a": 0.5})
    total = sum((network.weight.sum() * 100 for network in networks.values()), torch.zeros(()))
    updates.apply("told", total, 1.0)
    updates.apply("both", total, 0.5)
    values: list[Any] = [network.weight.item() for network in networks.values()]
    assert values == pytest.approx([0.95, 1.95, 3.0])  # Adam's first step is its learning rate
    states = updates.state_dict()
    seen = [states[name]["state"][0]["exp_avg"].item() for name in "ab"]  # a tenth of the gradient, once it is clipped
    assert seen == pytest.approx([0.05, 0.1], rel=1e-4)
    assert not states["c"]["state"]


def test_a_gradient_is_scaled_and_its_value_is_not():
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    scaled = scale_gradient(values, 0.25)
    assert torch.equal(scaled, values)
    scaled.square().sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([0.5, -1.0]))
    assert not scale_gradient(values, 0.0).requires_grad

"""Classic and joint training: which loss trains which weights, equation 3 by hand, and the forward model's own loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from backsight.chain import InverseChain
from backsight.core import IMAGE, Key, UserError
from backsight.data import Target
from backsight.engine import StagedModel
from backsight.models import MODELS, duplicate
from backsight.options import Update
from backsight.tasks import (
    UPDATES,
    Classic,
    Joint,
    Modular,
    Task,
    answer,
    as_labels,
    build_chains,
    check_truth,
    make_plans,
)
from backsight.tasks.joint import scale_gradient
from backsight.tasks.task import image_loss, stage_loss
from numerics import assert_rounding
from small import build_small, random_images

STAGE = {"detr": "decoder", "vit": "encoder"}
PATH = {"detr": ["decoder", "encoder", "backbone"], "vit": ["encoder", "backbone"]}
FORWARD = Key(0, "forward")


def target(*boxes: tuple[float, float, float, float], label: int | None = None, crowd: tuple[int, ...] = ()) -> Target:
    """Objects of the classes 0, 1, ... in ``boxes``; those at the places ``crowd`` are crowds."""
    regions = torch.zeros(len(boxes), dtype=torch.bool)
    regions[list(crowd)] = True
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.arange(len(boxes)), None, regions, label)


TARGETS = (target((4, 6, 40, 60), (50, 2, 90, 30), label=1), target((10, 10, 30, 20), label=4))


@pytest.fixture(params=["detr", "vit"])
def model(request: pytest.FixtureRequest, small_model: Callable[[str], StagedModel]) -> StagedModel:
    return small_model(request.param)


def chains_of(model: StagedModel, seeds: Sequence[int] = (0,)) -> list[InverseChain]:
    return build_chains(model, make_plans(model), seeds)


def joint(model: StagedModel, trade_off: float, update: Update = "chain", seeds: Sequence[int] = (0,)) -> Joint:
    return Joint(model, chains_of(model, seeds), STAGE[model.spec.family], trade_off, update)


def gradients(
    task: Task, images: Tensor, only: Iterable[Key] = (), targets: Sequence[Target] = TARGETS
) -> dict[Key, dict[str, Tensor]]:
    """The gradients of every network, once all losses that train one (or those in ``only``) went backward."""
    for key, loss, networks in task.losses(images, None, targets):
        if networks and (not only or key in only):
            loss.backward()
    return {key: gradients_of(network) for key, network in task.networks.items()}


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
        torch.testing.assert_close(found.get(name, torch.zeros(())), torch.as_tensor(expected), rtol=1e-3, atol=1e-5)


def path_of(chain: InverseChain, stage: str) -> list[nn.Module]:
    return [chain.inverses[entry] for entry in chain.path(stage)]


def chain_error(copy: StagedModel, chain: InverseChain, images: Tensor) -> Tensor:
    stage = STAGE[copy.spec.family]
    return image_loss(copy, path_of(chain, stage), copy.answer(images, [stage])[stage], images)


# ---- equation 3


@pytest.mark.parametrize("trade_off", [0.0, 0.1, 0.9, 1.0])
def test_the_forward_model_learns_from_lambda_of_the_image_and_the_rest_of_its_task(
    model: StagedModel, trade_off: float
):
    task, images = joint(model, trade_off), random_images(model)
    found = gradients(task, images)[FORWARD]
    error = by_hand(model, lambda copy: chain_error(copy, task.chains[0], images))
    own = by_hand(model, lambda copy: answer(copy, images, (), TARGETS)[1])
    assert_mixed(found, [(trade_off, error), (1 - trade_off, own)])


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("trade_off", [0.0, 0.9])
def test_inverses_learn_from_the_reconstruction_alone_whatever_lambda_is(
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
        image_loss(model, path_of(chain, stage), features[stage], images).backward()
    else:
        for entry in path:
            stage_loss(model, chain.inverses[entry], entry, features).backward()
    for entry in path:
        assert_mixed(found[Key(0, entry)], [(1.0, gradients_of(chain.inverses[entry]))])


@pytest.mark.parametrize("update", UPDATES)
def test_the_joint_loss_is_equation_3(model: StagedModel, update: Update):
    task = joint(model, 0.3, update)
    losses = {key.stage: loss.item() for key, loss, _ in task.losses(random_images(model), None, TARGETS)}
    parts = ["backbone"] if update == "isolated" else PATH[model.spec.family] if update == "sum" else [IMAGE]
    error = sum(losses[name] for name in parts)
    assert losses["joint"] == pytest.approx(0.3 * error + 0.7 * losses["task"] + error, rel=1e-5)


def test_at_lambda_1_the_task_and_at_lambda_0_the_reconstruction_has_no_gradient(model: StagedModel):
    heads = {"detr": ("class_labels_classifier", "bbox_predictor"), "vit": ("head.", "norm.")}[model.spec.family]
    found = gradients(joint(model, 1.0), random_images(model))[FORWARD]
    assert found
    assert not any(name.startswith(heads) for name in found)
    unknown = tuple(Target() for _ in TARGETS)  # so that the task has no gradient either
    assert gradients(joint(model, 0.0), random_images(model), targets=unknown)[FORWARD] == {}


# ---- update modes

DETR_FRONT = {"model.backbone", "model.input_projection"}
DETR = {*DETR_FRONT, "model.encoder", "model.decoder", "model.query_position_embeddings"}
VIT_FRONT = {"patch_embed", "pos_embed"}


@pytest.mark.parametrize(
    ("family", "update", "expected"),
    [
        ("detr", "chain", DETR),
        ("detr", "sum", DETR),
        ("detr", "isolated", DETR_FRONT),
        ("detr", "backwards-only", set()),
        ("vit", "chain", {"blocks", *VIT_FRONT}),
        ("vit", "sum", {"blocks", *VIT_FRONT}),
        ("vit", "isolated", VIT_FRONT),
        ("vit", "backwards-only", set()),
    ],
)
def test_how_far_into_the_forward_model_the_reconstruction_reaches(
    family: str, update: Update, expected: set[str], small_model: Callable[[str], StagedModel]
):
    model = small_model(family)
    found = gradients(joint(model, 1.0, update), random_images(model)).get(FORWARD, {})
    depth = 2 if family == "detr" else 1
    assert {".".join(name.split(".")[:depth]) for name, each in found.items() if each.any()} - {"cls_token"} == expected


def test_isolated_inverses_train_themselves_alone(model: StagedModel):
    task, images = joint(model, 0.9, "isolated"), random_images(model)
    others = [Key(0, entry) for entry in PATH[model.spec.family][:-1]]
    found = gradients(task, images, only=others)
    assert {key for key, each in found.items() if each} == set(others)
    assert all(task.covers[key] == (key,) for key in others)
    assert task.covers[Key(0, "joint")] == (FORWARD, Key(0, "backbone"))


def test_with_sum_the_features_are_targets_too(small_model: Callable[[str], StagedModel]):
    """The gradient of |x - inverse(y)| reaches x itself, not y alone."""
    model = small_model("vit")
    task, images = joint(model, 1.0, "sum"), random_images(model)
    chain = task.chains[0]

    def total(copy: StagedModel) -> Tensor:
        trace = copy.answer(images, ["backbone", "encoder"])
        local = (chain.inverses["encoder"](trace["encoder"]) - trace["backbone"]).square().mean()
        return local + image_loss(copy, path_of(chain, "backbone"), trace["backbone"], images)

    assert_mixed(gradients(task, images)[FORWARD], [(1.0, by_hand(model, total))])


def test_backwards_only_leaves_the_forward_model_out(model: StagedModel):
    task = joint(model, 0.5, "backwards-only")
    assert FORWARD not in task.networks
    gradients(task, random_images(model))
    assert gradients_of(task.forward_model(0).module) == {}


@pytest.mark.parametrize("update", UPDATES)
def test_every_loss_is_known_beforehand_and_every_network_is_trained_by_one(model: StagedModel, update: Update):
    task = joint(model, 0.5, update, seeds=(3, 4))
    losses = list(task.losses(random_images(model), None, TARGETS))
    assert {key: networks for key, _, networks in losses} == task.covers
    assert [key for key, _, _ in losses] == list(task.covers)
    assert sorted(each for _, _, networks in losses for each in networks) == sorted(task.networks)
    assert {key.seed for key in task.networks} == {3, 4}


# ---- seeds, copies, what is judged


def test_every_seed_trains_a_copy_and_the_model_stays_as_it_was(model: StagedModel):
    before, task = model.digest(), joint(model, 0.5, seeds=(0, 1))
    for _, loss, networks in task.losses(random_images(model), None, TARGETS):
        if networks:
            loss.backward()
        for key in networks:
            torch.optim.SGD(task.networks[key].parameters(), 0.01).step()
    digests = [task.forward_model(seed).digest() for seed in (0, 1)]
    assert model.digest() == before
    assert len({before, *digests}) == 3
    assert not any(each.requires_grad for each in model.module.parameters())


def test_a_forward_model_stays_in_evaluation_mode(model: StagedModel):
    task = joint(model, 0.5)
    task.train(True)
    assert not any(module.training for module in task.forward_model(0).module.modules())
    assert all(network.training for key, network in task.networks.items() if key != FORWARD)
    task.train(False)
    assert not any(network.training for network in task.networks.values())


def test_the_networks_of_a_seed_are_judged_and_stopped_together_but_for_modular_ones(model: StagedModel):
    task = joint(model, 0.5, "isolated", seeds=(0, 1))
    losses = {key: index + 1.0 for index, key in enumerate(task.covers)}
    errors = task.errors(losses)
    for seed in (0, 1):
        own = [losses[key] for key, networks in task.covers.items() if networks and key.seed == seed]
        assert {errors[key] for key in task.networks if key.seed == seed} == {sum(own)}
    assert task.stop(Key(1, "joint")) == [key for key in task.networks if key.seed == 1]
    assert {key.seed for key, networks in task.covers.items() if networks} == {0}
    modular = Modular(model, chains_of(model))
    assert modular.errors({FORWARD: 2.0}) == {FORWARD: 2.0}
    assert modular.stop(Key(0, "encoder")) == [Key(0, "encoder")]
    assert modular.covers[Key(0, "backbone")] == (Key(0, "backbone"),)


def test_a_gradient_is_scaled_and_its_value_is_not():
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    scaled = scale_gradient(values, 0.25)
    assert torch.equal(scaled, values)
    scaled.square().sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([0.5, -1.0]))
    assert not scale_gradient(values, 0.0).requires_grad


# ---- classic


def test_classic_of_the_first_stage_is_modular(model: StagedModel):
    images, key = random_images(model), Key(0, "backbone")
    classic, modular = Classic(model, chains_of(model), "backbone"), Modular(model, chains_of(model))
    assert list(classic.networks) == [key]
    (ours,), theirs = classic.losses(images), {each: loss for each, loss, _ in modular.losses(images)}
    assert ours[0] == Key(0, IMAGE)
    assert ours[1].item() == pytest.approx(theirs[key].item(), rel=1e-5)
    assert_mixed(gradients(classic, images)[key], [(1.0, gradients(modular, images)[key])])


def test_classic_trains_every_inverse_on_the_way_and_no_other(model: StagedModel):
    task = Classic(model, chains_of(model, (0, 1)), STAGE[model.spec.family])
    path = PATH[model.spec.family]
    assert set(task.networks) == {Key(seed, entry) for seed in (0, 1) for entry in path}
    found = gradients(task, random_images(model), only=[Key(1, IMAGE)])
    assert {key for key, each in found.items() if each} == {Key(1, entry) for entry in path}
    assert all(each.grad is None for each in model.module.parameters())


def test_classic_needs_every_inverse_on_the_way(small_model: Callable[[str], StagedModel]):
    model = small_model("detr")
    plans = {name: plan for name, plan in make_plans(model).items() if name != "encoder"}
    with pytest.raises(UserError, match="no inverse 'encoder'"):
        Classic(model, build_chains(model, plans, [0]), "decoder")


# ---- the forward model's own loss

ONE, TWO = target((8, 4, 40, 36)), target((0, 0, 20, 30), (50, 10, 90, 60))
NONE, CROWD = target(), target((5, 5, 60, 60), crowd=(0,))


def shares(boxes: list[list[float]], height: int, width: int) -> Tensor:
    """Corners in pixels -> (cx, cy, w, h) in shares of the image, box by box."""
    found = [[(a + c) / 2 / width, (b + d) / 2 / height, (c - a) / width, (d - b) / height] for a, b, c, d in boxes]
    return torch.tensor(found)


def library_loss(model: StagedModel, images: Tensor, targets: list[Target]) -> Tensor:
    """The loss of the library itself, called as its documentation says."""
    height, width = images.shape[-2:]
    labels = [{"class_labels": each.labels, "boxes": shares(each.boxes.tolist(), height, width)} for each in targets]
    return model.module(model.pixels.normalise(images), labels=labels, **model.arguments).loss


OTHERS = ("vit-transformers", "dinov2", "dinov2_with_registers", "grounding_dino")  # whose classes are words
DETECTORS = [name for name, each in MODELS.items() if each.library == "transformers" and name not in OTHERS]


@pytest.mark.parametrize("family", DETECTORS)
def test_a_detector_s_loss_is_its_library_s_own(family: str, small_model: Callable[[str], StagedModel]):
    model = small_model(family)
    images = random_images(model)
    features, loss = answer(model, images, ["encoder"], [ONE, TWO])
    torch.testing.assert_close(loss, library_loss(model, images, [ONE, TWO]))
    assert torch.equal(features["encoder"], model.features(images, ["encoder"])["encoder"])


def test_images_without_objects_give_features_and_no_loss(small_model: Callable[[str], StagedModel]):
    model = small_model("detr")
    images = random_images(model, batch=5)
    features, loss = answer(model, images, ["decoder"], [NONE, TWO, CROWD, ONE, NONE])
    assert_rounding(loss, library_loss(model, images[[1, 3]], [TWO, ONE]))
    assert_rounding(features["decoder"], model.features(images, ["decoder"])["decoder"])
    features, loss = answer(model, images[:2], ["decoder"], [NONE, CROWD])
    assert loss.item() == 0
    assert features["decoder"].shape[0] == 2


def test_one_object_of_an_image_stays_one_in_a_batch(detr: StagedModel):
    images = random_images(detr, batch=3)
    assert_rounding(answer(detr, images, (), [ONE, TWO, TWO])[1], library_loss(detr, images, [ONE, TWO, TWO]))


def test_a_crowd_is_no_object(detr: StagedModel):
    images = random_images(detr, batch=1)
    mixed = target((8, 4, 40, 36), (0, 0, 90, 60), crowd=(1,))
    torch.testing.assert_close(answer(detr, images, (), [mixed])[1], library_loss(detr, images, [ONE]))


def test_boxes_are_shares_of_the_picture_where_it_is_padded():
    images, valid = torch.zeros(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool)
    valid[:, :32, :80] = True
    for given, (height, width) in ((valid, (32, 80)), (None, (64, 96))):
        (label,) = as_labels([ONE], images, given)
        torch.testing.assert_close(label["boxes"], shares([[8, 4, 40, 36]], height, width))


@pytest.mark.parametrize("family", ["vit", "vit-transformers", "swin"])
def test_a_classifier_s_loss_is_the_cross_entropy_of_labelled_images(
    family: str, small_model: Callable[[str], StagedModel]
):
    model = small_model(family)
    images = random_images(model, batch=3)
    _, loss = answer(model, images, model.stages[-1:], [target(label=1), target(), target(label=0)])
    logits = model.predict(model.run(images)).logits
    torch.testing.assert_close(loss, functional.cross_entropy(logits[[0, 2]], torch.tensor([1, 0])))
    assert answer(model, images, (), [target()] * 3)[1].item() == 0


class Unlabelled:
    """Data without ground truth."""

    name, classes = "photos", {0: "cat"}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        return None


def test_joint_training_needs_ground_truth_and_a_task():
    model = build_small("vit")
    with pytest.raises(UserError, match="photos has no class of the whole image"):
        check_truth(model, Unlabelled())
    object.__setattr__(model.spec, "task", "features")
    with pytest.raises(UserError, match="task modular or classic"):
        check_truth(model, Unlabelled())


def test_a_detector_whose_classes_are_words_of_a_text_is_refused(small_model: Callable[[str], StagedModel]):
    with pytest.raises(UserError, match=r"grounding_dino has no loss of its own for classes"):
        check_truth(small_model("grounding_dino"), Unlabelled())

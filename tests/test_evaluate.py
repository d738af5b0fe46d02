"""Errors of a chain: the answers that are known, of inverses that know the truth and of others that know the mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from torch import Tensor

from backsight.chain import ChainEnsemble, InverseChain, Plan, build_chain, describe
from backsight.core import IMAGE, Layout
from backsight.data import Batch
from backsight.data.base import Target
from backsight.engine import StagedModel
from backsight.evaluation import Evaluation, evaluate
from backsight.inverses import Inverse
from small import random_images

NUM_IMAGES = 6


class Oracle(Inverse):
    """Answers what ``answer`` says of the features that it is given."""

    def __init__(self, source: Layout, target: Layout, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__(source, target)
        self.answer = answer

    def forward(self, features: Tensor) -> Tensor:
        return self.answer(features)


@pytest.fixture(scope="module")
def detr(small_model: Callable[[str], StagedModel]) -> StagedModel:
    return small_model("detr")


@pytest.fixture(scope="module")
def images(detr: StagedModel) -> Tensor:
    return random_images(detr, NUM_IMAGES)


def batches(images: Tensor, size: int = 2) -> Iterator[Batch]:
    for start in range(0, len(images), size):
        part = images[start : start + size]
        ids = tuple(str(start + index) for index in range(len(part)))
        yield Batch(part, ids, tuple(Target() for _ in ids))


def truths(model: StagedModel, images: Tensor) -> dict[str, Tensor]:
    """The true features of every stage, and the images."""
    trace = model.run(images)
    return {name: trace[name] for name in [IMAGE, *model.stages]}


def chain_of(model: StagedModel, answers: Mapping[str, Callable[[Tensor], Tensor]], seed: int = 0) -> InverseChain:
    """A chain of oracles, an answer for every stage."""
    inverses = {
        stage: Oracle(model.layout(stage), model.layout(model.spec.before(stage)), answer)
        for stage, answer in answers.items()
    }
    plans = {stage: Plan("oracle") for stage in answers}
    return InverseChain(inverses, plans, model.stages, describe(model), seed)


def truth(known: Tensor, target: Tensor) -> Callable[[Tensor], Tensor]:
    """For each of the features ``known``, its own ``target``."""

    def answer(features: Tensor) -> Tensor:
        nearest = torch.cdist(features.flatten(1), known.flatten(1)).argmin(1)
        return target[nearest]

    return answer


def mean_of_channels(target: Tensor) -> Callable[[Tensor], Tensor]:
    """The same for all features: every channel's mean over the whole data."""
    channels = 1 if target.dim() == 4 else 2
    others = [each for each in range(target.dim()) if each != channels]
    mean = target.mean(others, keepdim=True).expand_as(target)[:1]
    return lambda features: mean.expand(len(features), *mean.shape[1:])


def measure(model: StagedModel, chains: list[InverseChain], images: Tensor, size: int = 2) -> Evaluation:
    grey = torch.full(images.shape[1:], 0.5)
    return evaluate(model, ChainEnsemble(chains), batches(images, size), grey)


def test_a_perfect_inverse_has_no_error(detr: StagedModel, images: Tensor) -> None:
    known = truths(detr, images)
    answers = {stage: truth(known[stage], known[detr.spec.before(stage)]) for stage in detr.stages}
    found = measure(detr, [chain_of(detr, answers)], images)
    for errors in found.entries.values():
        assert errors.layer.tolist() == pytest.approx([0], abs=1e-6)
        assert errors.image["mse"].shape == (1, NUM_IMAGES)
        assert errors.image["mse"].max() < 1e-12
        assert errors.image["ssim"].min() > 0.999999
    assert list(found.entries) == detr.stages


def test_the_mean_of_every_channel_has_the_error_one(detr: StagedModel, images: Tensor) -> None:
    known = truths(detr, images)
    answers = {stage: mean_of_channels(known[detr.spec.before(stage)]) for stage in detr.stages}
    found = measure(detr, [chain_of(detr, answers)], images)
    for errors in found.entries.values():
        assert errors.layer.tolist() == pytest.approx([1], abs=1e-4)


def test_one_bad_inverse_is_no_other_layer_s_error(detr: StagedModel, images: Tensor) -> None:
    known = truths(detr, images)
    answers = {stage: truth(known[stage], known[detr.spec.before(stage)]) for stage in detr.stages}
    answers["encoder"] = mean_of_channels(known["backbone"])
    found = measure(detr, [chain_of(detr, answers)], images).entries
    assert [round(errors.layer.item(), 3) for errors in found.values()] == [0, 1, 0, 0]
    assert found["backbone"].image["mse"].max() < 1e-12
    assert all(found[stage].image["mse"].mean() > 0.01 for stage in ("encoder", "decoder", "prediction"))


def test_an_image_error_is_that_of_the_whole_chain(model: StagedModel) -> None:
    plans = {stage.name: Plan(*stage.inverses[""]) for stage in model.spec.stages}
    chains = [build_chain(model, plans, seed).eval() for seed in (0, 1)]
    images = random_images(model, 3)
    found = measure(model, chains, images)
    trace = model.run(images)
    for stage in model.stages:
        expected = torch.stack(
            [
                (chain.reconstruct(trace, stage).clamp(0, 1) - images).double().square().mean((1, 2, 3))
                for chain in chains
            ]
        )
        torch.testing.assert_close(found.entries[stage].image["mse"], expected.detach(), rtol=1e-4, atol=1e-7)
    assert found.seeds == (0, 1)


def test_an_evaluation_does_not_hang_on_the_batches(model: StagedModel) -> None:
    plans = {stage.name: Plan(*stage.inverses[""]) for stage in model.spec.stages}
    chain, images = build_chain(model, plans, 0).eval(), random_images(model, NUM_IMAGES)
    one, other = (measure(model, [chain], images, size) for size in (1, NUM_IMAGES))
    assert one.ids == other.ids == tuple(map(str, range(NUM_IMAGES)))
    for stage in model.stages:
        torch.testing.assert_close(one.entries[stage].layer, other.entries[stage].layer, rtol=1e-4, atol=1e-6)
        for metric, values in one.entries[stage].image.items():
            torch.testing.assert_close(values, other.entries[stage].image[metric], rtol=1e-3, atol=1e-5)


def test_the_mean_image_stands_beside(detr: StagedModel, images: Tensor) -> None:
    plans = {"backbone": Plan("local"), "backbone@deep": Plan("local", {"depth": 6})}
    chains = [build_chain(detr, plans, seed).eval() for seed in (0, 1, 2)]
    empty = Batch(torch.zeros(0, 3, 0, 0), (), ())
    grey = torch.full(images.shape[1:], 0.5)
    found = evaluate(detr, ChainEnsemble(chains), [empty, *batches(images)], grey)
    torch.testing.assert_close(found.mean_image["mse"], (images.double() - 0.5).square().mean((1, 2, 3)))
    written = json.loads(json.dumps(found.as_json()))
    assert (written["num_images"], written["seeds"]) == (NUM_IMAGES, [0, 1, 2])
    assert set(written["entries"]) == {"backbone", "backbone@deep"}
    entry = written["entries"]["backbone@deep"]
    assert entry["mse"] == pytest.approx(found.entries["backbone@deep"].image["mse"].mean(1).tolist())
    mean, low, high = entry["interval"]["mse"]
    assert low < mean < high
    assert mean == pytest.approx(sum(entry["mse"]) / 3)

"""Errors of a chain: the answers that are known, of inverses that know the truth and of others that know the mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from backsight import evaluation
from backsight.chain import ChainEnsemble, InverseChain, Plan, build_chain
from backsight.core import Detections
from backsight.data import Batch
from backsight.data.base import Target
from backsight.engine import StagedModel
from backsight.error_table import error_table, markdown_table
from backsight.evaluation import _Variance, evaluate, join_seeds, task_scores
from backsight.results import Result
from known_chains import chain_of, perfect_chain
from small import build_small, random_images

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def images(detr: StagedModel) -> Tensor:
    return random_images(detr, NUM_IMAGES)


def batches(images: Tensor, size: int = 2) -> Iterator[Batch]:
    for start in range(0, len(images), size):
        part = images[start : start + size]
        ids = tuple(str(start + index) for index in range(len(part)))
        yield Batch(part, ids, tuple(Target() for _ in ids))


def mean_of_channels(target: Tensor) -> Callable[[Tensor], Tensor]:
    """Whatever the features are: every channel's mean over the whole data."""
    channels = 1 if target.dim() == 4 else 2
    others = [each for each in range(target.dim()) if each != channels]
    mean = target.mean(others, keepdim=True).expand_as(target)[:1]
    return lambda features: mean.expand(len(features), *mean.shape[1:])


def measure(model: StagedModel, chains: list[InverseChain], images: Tensor, size: int = 2) -> Result:
    grey = torch.full(images.shape[1:], 0.5)
    return evaluate(model, ChainEnsemble(chains), batches(images, size), grey)


def test_a_perfect_inverse_has_no_error(detr: StagedModel, images: Tensor) -> None:
    found = measure(detr, [perfect_chain(detr, images)], images)
    for stage in detr.stages:
        assert found.one(stage=stage, metric="layer error").values.max() < 1e-6
        assert found.one(stage=stage, metric="mse").values.shape == (1, NUM_IMAGES)
        assert found.one(stage=stage, metric="mse").values.max() < 1e-12
        assert found.one(stage=stage, metric="ssim").values.min() > 0.999999
    assert found.values_of("stage") == [*detr.stages, "mean image"]


def test_the_mean_of_every_channel_has_the_layer_error_one(detr: StagedModel, images: Tensor) -> None:
    trace = detr.run(images)
    answers = {stage: mean_of_channels(trace[detr.spec.before(stage)]) for stage in detr.stages}
    found = measure(detr, [chain_of(detr, answers)], images)
    for each in found.select(metric="layer error"):
        assert each.mean() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("offset", [0.0, 3e3], ids=["around zero", "far from zero"])
def test_the_variance_of_a_target_is_exact_over_batches_and_processes(offset: float) -> None:
    target = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0)) + offset
    counted = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) > 0.5
    for mask in (None, counted):
        one, other = _Variance(), _Variance()
        one.add(target[:2], None if mask is None else mask[:2])
        one.add(target[2:3], None if mask is None else mask[2:3])
        other.add(target[3:], None if mask is None else mask[3:])
        tokens = target.double().flatten(0, 1) if mask is None else target.double()[mask]
        expected = float(tokens.var(0, correction=0).mean())
        assert _Variance.joined([one.on_cpu(), other.on_cpu()]).value() == pytest.approx(expected, rel=1e-9)


def test_one_bad_inverse_is_no_other_layer_s_error(detr: StagedModel, images: Tensor) -> None:
    chain: Any = perfect_chain(detr, images)
    chain.inverses["encoder"].answer = mean_of_channels(detr.run(images)["backbone"])
    found = measure(detr, [chain], images)
    assert [round(each.mean(), 3) for each in found.select(metric="layer error")] == [0, 1, 0, 0]
    assert found.one(stage="backbone", metric="mse").values.max() < 1e-12
    assert all(found.one(stage=stage, metric="mse").mean() > 0.01 for stage in ("encoder", "decoder", "prediction"))


@cache
def untrained(model: StagedModel, seed: int) -> InverseChain:
    plans = {stage.name: Plan(*stage.inverses[""]) for stage in model.spec.stages}
    return build_chain(model, plans, seed).eval()


def assert_same(one: Result, other: Result) -> None:
    assert one.images == other.images
    assert len(one.measurements) == len(other.measurements)
    for each in one.measurements:
        torch.testing.assert_close(each.values, other.one(**each.labels).values, rtol=1e-3, atol=1e-5)


def test_an_image_error_is_that_of_the_whole_chain(model: StagedModel) -> None:
    chains, images = [untrained(model, seed) for seed in (0, 1)], random_images(model, 3)
    found, trace = measure(model, chains, images), model.run(images)
    for stage in model.stages:
        painted = [chain.reconstruct(trace, stage).detach().clamp(0, 1) for chain in chains]
        expected = torch.stack([(each - images).double().square().mean((1, 2, 3)) for each in painted])
        torch.testing.assert_close(found.one(stage=stage, metric="mse").values, expected, rtol=1e-4, atol=1e-7)
    assert found.subjects[0]["seeds"] == [0, 1]


def test_an_evaluation_does_not_depend_on_the_batches(model: StagedModel) -> None:
    chains, images = [untrained(model, 0)], random_images(model, 3)
    one = measure(model, chains, images, 1)
    assert one.images == {model.name: ["0", "1", "2"]}
    assert_same(one, measure(model, chains, images, 3))


def test_processes_together_measure_what_one_does(vit: StagedModel) -> None:
    """The second has no image of the last batch."""
    ensemble, images, grey = ChainEnsemble([untrained(vit, 0)]), random_images(vit, 5), torch.tensor(0.5)
    grey = grey.expand(images.shape[1:])
    whole = [*batches(images, 4)]
    parts: list[Any] = []

    def keep(found: Any) -> list[Any]:
        parts.append(found)
        return [found]

    shares = [[whole[0].part(0, 2), whole[1]], [whole[0].part(2, 4), whole[1].part(0, 0)]]
    for share in shares:
        evaluate(vit, ensemble, share, grey, gather=keep)
    together = evaluate(vit, ensemble, shares[0], grey, gather=lambda found: parts)
    assert_same(together, evaluate(vit, ensemble, whole, grey))


def test_seeds_with_forward_models_of_their_own_are_joined(detr: StagedModel, images: Tensor) -> None:
    plans = {"backbone": Plan("local", {"depth": 1})}
    chains = [build_chain(detr, plans, seed).eval() for seed in (3, 5)]
    joined, whole = join_seeds([measure(detr, [chain], images) for chain in chains]), measure(detr, chains, images)
    assert joined.subjects == whole.subjects
    assert_same(joined, whole)


def test_the_mean_image_stands_beside_in_the_table(detr: StagedModel, images: Tensor) -> None:
    plans = {"backbone": Plan("local"), "backbone@deep": Plan("local", {"depth": 6})}
    chains = [build_chain(detr, plans, seed).eval() for seed in (0, 1, 2)]
    empty = Batch(torch.zeros(0, 3, 0, 0), (), ())
    grey = torch.full(images.shape[1:], 0.5)
    found = evaluate(detr, ChainEnsemble(chains), [empty, *batches(images)], grey)
    expected = (images.double() - 0.5).square().mean((1, 2, 3))
    torch.testing.assert_close(found.one(stage="mean image", metric="mse").values[0], expected)
    columns, rows = error_table(found)
    assert [column.metric for column in columns] == ["mse", "psnr", "ssim", "layer error"]
    assert [row.stage for row in rows] == ["backbone", "backbone@deep", "mean image"]
    deep = found.one(stage="backbone@deep", metric="mse")
    assert rows[1].cells[0] is deep
    assert rows[1].share == pytest.approx(deep.mean() / float(expected.mean()))
    mean, low, high = deep.interval()
    assert low < mean < high
    assert f"| backbone@deep | {rows[1].share:.2f} | {mean:.4g} ({low:.4g} to {high:.4g}) |" in markdown_table(found)


# ---- scores of the forward model


def scene(*labels: int, label: int | None = None) -> Target:
    """Objects of some classes side by side, or one class of the whole image."""
    boxes = torch.tensor([[8.0 * index, 8.0, 8.0 * index + 6, 24.0] for index in range(len(labels))]).reshape(-1, 4)
    crowd = torch.zeros(len(labels), dtype=torch.bool)
    return Target(boxes, torch.tensor(labels, dtype=torch.int64), crowd=crowd, label=label)


def test_the_accuracy_is_the_share_of_right_answers(vit: StagedModel) -> None:
    images = random_images(vit, 4)
    top = vit.predict(vit.run(images)).top().tolist()
    labels = [top[0], top[1], (top[2] + 1) % 5, None]
    batch = Batch(images, tuple("abcd"), tuple(scene(label=each) for each in labels))
    scores = task_scores(vit, [batch, batch])
    torch.testing.assert_close(scores["accuracy"].nan_to_num(-1), torch.tensor([[1.0, 1, 0, -1] * 2]).double())
    assert float(scores["accuracy"].nanmean()) == pytest.approx(2 / 3)
    assert task_scores(vit, [Batch(images, batch.ids, (scene(),) * 4)]) == {}


def test_a_detector_that_answers_the_truth_has_the_precision_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_small("detr")
    batch = Batch(random_images(model), ("a", "b"), (scene(0), scene(1, 2)))
    answers = [Detections(each.boxes, torch.ones(len(each.boxes)), each.labels) for each in batch.targets]
    monkeypatch.setattr(model, "read", lambda output, size: answers)
    scores = task_scores(model, [batch])
    assert scores["found"].tolist() == [[1, 1]]
    assert float(scores["AP"]) == pytest.approx(1.0)
    assert task_scores(model, [Batch(batch.images, batch.ids, (scene(), scene()))]) == {}


def test_data_without_answers_are_not_read_to_their_end(
    small_model: Callable[[str], StagedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, taken = small_model("vit"), []
    monkeypatch.setattr(evaluation, "BLANK", 3)
    batch = Batch(random_images(model, 2), ("a", "b"), (scene(), scene()))

    def data() -> Iterator[Batch]:
        for index in range(9):
            taken.append(index)
            yield batch

    assert task_scores(model, data()) == {}
    assert len(taken) == 2

"""Errors of detection and the presence of their objects: known answers, queries, pictures, a contract over families."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backsight.core import Detections, Layout
from backsight.data import Sample, Target, open_data
from backsight.data.world import World
from backsight.engine import StagedModel
from backsight.experiments import detection_cases
from backsight.experiments.detection_cases import (
    ERRORS,
    Search,
    find_cases,
    find_queries,
    object_scores,
    query_stages,
    reconstruct_without,
    search_errors,
)
from backsight.experiments.detection_errors import measure, with_errors
from backsight.experiments.objects import fill_boxes
from backsight.figures import cut_out, outline
from backsight.figures.outlines import crop_around
from backsight.metrics import OUTCOMES, brought_by, presence, root_mean_square, standing_out, surroundings
from known_chains import check_contract, random_subject
from marks import quick
from stand_in_chains import features_of, paint_grey, paint_input, painted

SIDE = 32
LAW = "world:independent"


def square(start: int = 8, stop: int = 24) -> Tensor:
    """``1 H W``: the region of a square object."""
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, start:stop, start:stop] = True
    return mask


def picture(seed: int = 0) -> Tensor:
    """A red object with some texture on soft noise."""
    image = 0.4 + 0.1 * torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return torch.where(square(), image + torch.tensor([0.4, -0.3, -0.3])[:, None, None], image)


def present(reconstruction: Tensor, image: Tensor | None = None) -> float:
    image = picture() if image is None else image
    return float(presence(image, reconstruction[None], square(), surroundings(square())))


# ---- presence


def test_presence_is_one_in_the_image_itself_and_zero_where_nothing_stands_out() -> None:
    image = picture()
    ring = surroundings(square())[0]
    filled = torch.where(square(), image[:, ring].mean(1)[:, None, None], image)
    assert present(image) == pytest.approx(1)
    assert present(filled) == pytest.approx(0, abs=1e-6)
    assert present(torch.full_like(image, 0.7)) == pytest.approx(0, abs=1e-6)


def test_presence_is_linear_and_blind_to_a_tint_of_the_whole() -> None:
    image = picture()
    assert present(0.3 * image + 0.5) == pytest.approx(0.3)
    assert present(image + torch.tensor([0.2, -0.1, 0.0])[:, None, None]) == pytest.approx(1)
    assert present(1 - image) == pytest.approx(-1)


def test_mean_colour_alone_is_most_of_the_presence_and_stains_are_none() -> None:
    image, region = picture(), square()
    flat = torch.where(region, image[:, region[0]].mean(1)[:, None, None], 0.45)
    assert 0.9 < present(flat) < 1
    stains = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    assert abs(present(stains)) < 0.1


def test_presence_is_cut_off_and_absent_where_there_is_nothing_to_see() -> None:
    image = picture()
    assert present(9 * image) == 2.0
    assert present(-9 * image) == -1.0
    assert math.isnan(present(image, torch.full_like(image, 0.5)))
    empty, everything = torch.zeros_like(square()), torch.ones_like(square())
    assert presence(image, image[None], empty, surroundings(empty)).isnan().all()
    assert presence(image, image[None], everything, surroundings(everything)).isnan().all()


def test_presence_by_its_definition() -> None:
    generator = torch.Generator().manual_seed(3)
    image, others = torch.rand(3, SIDE, SIDE, generator=generator), torch.rand(2, 3, SIDE, SIDE, generator=generator)
    masks = torch.cat([square(), square(0, 9)])
    rings = surroundings(masks)
    values = presence(image, others, masks, rings)
    assert values.shape == (2, 2)
    for seed in range(2):
        for index in range(2):
            x = image[:, masks[index]] - image[:, rings[index]].mean(1, keepdim=True)
            r = others[seed][:, masks[index]] - others[seed][:, rings[index]].mean(1, keepdim=True)
            assert float(values[seed, index]) == pytest.approx(float((r * x).sum() / (x * x).sum()), abs=1e-5)


def test_surroundings_are_a_ring_without_other_objects() -> None:
    ring = surroundings(square())[0]
    assert torch.equal(ring, square(4, 28)[0] & ~square()[0])  # a quarter of sixteen pixels wide
    other = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    other[:, 16:] = True
    assert torch.equal(surroundings(square(), other)[0], ring & ~other)
    # In a scene of nothing but objects their neighbours are all there is.
    assert torch.equal(surroundings(square(), torch.ones_like(other))[0], ring)
    assert surroundings(torch.cat([square(15, 16)]))[0].sum() == 24  # at least two pixels wide


def test_standing_out_is_the_difference_of_mean_colours() -> None:
    image = torch.where(square(), torch.tensor([0.8, 0.5, 0.1])[:, None, None], 0.5)
    expected = math.sqrt((0.3**2 + 0.4**2) / 3)
    assert float(standing_out(image[None], square()[0], surroundings(square())[0])) == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(st.floats(-0.9, 1.9), st.integers(0, 99))
def test_what_a_query_brings_is_the_part_of_the_way(part: float, seed: int) -> None:
    image = picture(seed)
    without = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))[None]
    between = without + part * (image - without)
    assert float(brought_by(image, between, without, square()[0])) == pytest.approx(part, abs=1e-5)
    expected = abs(part) * float((image - without)[..., square()[0]].square().mean().sqrt())
    assert float(root_mean_square(between - without, square()[0])) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_query_brings_nothing_to_where_all_is_there_already() -> None:
    image = picture()
    assert brought_by(image, image[None], image[None] + 0.001, square()[0]).isnan().all()


# ---- queries


def test_the_query_of_a_detection_is_the_one_with_its_box() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.6, 0.1, 0.4], [0.3, 0.6, 0.1, 0.41]])
    prediction = torch.cat([torch.zeros(3, 4), boxes], 1)
    corners = torch.tensor([[25.0, 40, 35, 80], [40, 40, 60, 60], [25, 40, 35, 80]])  # of 100 x 100 pixels
    found = Detections(corners, torch.ones(3), torch.zeros(3, dtype=torch.int64))
    assert find_queries(found, prediction, (100, 100)).tolist() == [1, 0, 1]


def test_scores_of_any_object() -> None:
    prediction = torch.tensor([[0.0, 0.0, 50.0, 9, 9, 9, 9], [50.0, 0.0, 0.0, 9, 9, 9, 9]])
    softmax, sigmoid = Layout(2, 7, classes=3), Layout(2, 7, classes=3, scores="sigmoid")
    assert object_scores(prediction, softmax).tolist() == pytest.approx([0, 1])
    assert object_scores(prediction, sigmoid).tolist() == pytest.approx([1, 1])


def test_silencing_changes_one_query_and_nothing_else(detector) -> None:
    features: list[Tensor] = []

    def watch(source):
        features.append(features_of(source))
        return paint_grey(detector)(source)

    subject = painted(detector, lambda _: watch, LAW, 4, batch_size=6)
    (batch,) = subject.batches
    assert query_stages(subject) == ["decoder", "prediction"]
    trace = subject.trace(batch)
    pairs = [(row, query) for row in range(4) for query in (0, 3)]
    images = list(reconstruct_without(subject, batch, "decoder", pairs))
    assert len(images) == len(pairs)
    assert images[0].shape == (2, 3, 96, 96)
    emptiest = object_scores(trace["prediction"], detector.layout("prediction")).argmin(1)
    for (row, query), silenced in zip(pairs, torch.cat(features), strict=True):
        original = trace["decoder"][row]
        others = torch.arange(len(original)) != query
        assert torch.equal(silenced[others], original[others])
        assert torch.equal(silenced[query], original[emptiest[row]])


def test_every_detection_has_the_query_that_made_it(detector) -> None:
    subject = painted(detector, paint_grey, LAW, 6, batch_size=6)
    (batch,) = subject.batches
    prediction = subject.trace(batch)["prediction"]
    layout = detector.layout("prediction")
    cases = [case for case in find_cases(subject, batch, 0.3) if case.answer is not None]
    assert len(cases) > 6
    for case in cases:
        scores = prediction[case.row, case.query, : layout.classes].softmax(0)
        assert float(scores[case.answer[1]]) == pytest.approx(case.answer[2], abs=1e-5)
        assert case.mask.any()
        assert not (case.mask & case.ring).any()


# ---- the experiment


def test_a_perfect_inverse_holds_everything_and_its_queries_bring_all(detector) -> None:
    result = measure(painted(detector, paint_input, LAW, 12, batch_size=6))
    values = result.one(type="correct", stage="decoder", metric="presence")
    assert values.known().shape[0] == 2
    assert values.known().shape[1] > 6
    for each in result.select(metric="presence") + result.select(metric="brought by query"):
        assert each.known().flatten().tolist() == pytest.approx([1.0] * each.known().numel(), abs=1e-6)
    seen, held = (result.one(type="correct", stage=stage, metric="contrast").mean() for stage in ("image", "decoder"))
    assert seen == pytest.approx(held)
    assert result.one(type="correct", stage="decoder", metric="painted by query").mean() > 0.1


def test_a_constant_inverse_holds_nothing_and_its_queries_paint_nothing(detector) -> None:
    result = measure(painted(detector, paint_grey, LAW, 12, batch_size=6))
    for metric in ("presence", "brought by query", "painted by query", "painted elsewhere"):
        assert result.one(type="correct", stage="decoder", metric=metric).known().numel() > 0
        for each in result.select(metric=metric):
            assert each.known().flatten().tolist() == pytest.approx([0.0] * each.known().numel(), abs=1e-6)


def test_types_are_counted_in_every_image(detector) -> None:
    subject = painted(detector, paint_grey, LAW, 12, batch_size=6)
    result = measure(subject, threshold=0.0)  # every query counts: ten detections an image
    counts = {kind: result.one(type=kind, metric="count").values[0] for kind in OUTCOMES}
    assert sum(counts[kind] for kind in OUTCOMES if kind != "missed").tolist() == [10.0] * 12
    assert counts["background"].sum() + counts["duplicate"].sum() > 60
    known = result.one(type="background", stage="decoder", metric="contrast").values.isfinite().all(0)
    assert torch.equal(known, counts["background"] > 0)
    # Nothing is sure enough: every object is missed.
    result = measure(subject, threshold=1.1)
    targets = [target for batch in subject.batches for target in batch.targets]
    missed = result.one(type="missed", metric="count").values[0]
    assert missed.tolist() == [len(target.labels) for target in targets]
    assert result.select(type="missed", metric="brought by query") == []


def test_pictures_can_be_filtered(detector) -> None:
    result = measure(painted(detector, paint_input, LAW, 12, batch_size=6), threshold=0.0, num_shown=2)
    for kind in ("correct", "background"):
        inputs = result.shown(type=kind, shows="input")
        assert len(inputs) == 2
        for shown in inputs:
            assert shown.image.shape[-2] >= 192 or shown.image.shape[-1] >= 192
            assert shown.labels["class"] in detector.module.config.id2label.values()
            own = result.shown(case=shown.labels["case"], type=kind)
            stages = [(each.labels["stage"], each.labels["shows"]) for each in own]
            assert stages[1:5] == [(stage, "reconstruction") for stage in detector.stages]
            assert stages[5:] == [("decoder", "without query"), ("prediction", "without query")]
            assert own[5].image.std() < 1e-6  # the stand-in paints grey once a query is silenced
            assert own[3].image.std() > 1e-3


@dataclass(frozen=True)
class WithGaps:
    """Data some of whose images cannot be read."""

    data: World
    gaps: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample | None:
        return None if index in self.gaps else self.data[index]

    def fingerprint(self) -> str:
        return f"{self.data.fingerprint()} without {self.gaps}"

    def __getattr__(self, name: str) -> Any:
        if name == "batch":
            raise AttributeError(name)
        return getattr(self.data, name)


@pytest.mark.parametrize("gaps", [(), (0, 7, 12)])
def test_images_with_errors_are_those_whose_cases_are_errors(detector, gaps: tuple[int, ...]) -> None:
    data = open_data(LAW, detector.pixels, masks=True).test
    found = search_errors(detector, WithGaps(data, gaps) if gaps else data, 40, 0.3, enough=100, batch_size=6).found
    assert set(found) == set(ERRORS) == set(OUTCOMES) - {"correct", "duplicate"}
    assert sum(map(len, found.values())) > 1
    subject = painted(detector, paint_grey, LAW, 40, batch_size=1)
    for index, batch in enumerate(subject.batches):
        kinds = {case.finding.outcome for case in find_cases(subject, batch, 0.3)}
        for kind, indices in found.items():
            assert (index in indices) == (kind in kinds and index not in gaps)


def test_no_more_images_are_looked_through_than_have_enough_errors(detector, monkeypatch) -> None:
    monkeypatch.setattr(detection_cases, "ERRORS", ("class", "missed"))
    data = open_data(LAW, detector.pixels).test
    search = search_errors(detector, data, 1_000, 0.1, enough=2, batch_size=10)
    assert search.looked < 1_000
    assert min(map(len, search.found.values())) >= 2
    earlier = [sum(index < search.looked - 10 for index in each) for each in search.found.values()]
    assert min(earlier) < 2


def test_errors_are_taken_in_turn_the_rarest_first_and_the_first_images_fill_up() -> None:
    search = Search({"missed": [3, 5, 8, 9], "class": [5, 6, 7], "both": [], "background": [8]}, looked=12)
    assert search.choose(1) == [8]
    assert search.choose(3) == [3, 5, 8]
    assert search.choose(5) == [3, 5, 6, 7, 8]
    assert search.choose(6) == [3, 5, 6, 7, 8, 9]
    assert search.choose(8) == [0, 1, 3, 5, 6, 7, 8, 9]
    assert search.choose(12) == list(range(12))


def test_images_with_errors_take_the_place_of_the_first_ones(detector, monkeypatch) -> None:
    subject = painted(detector, paint_grey, LAW, 10, batch_size=4)
    result = measure(subject, threshold=0.3, among=60)
    search = search_errors(detector, subject.data, 60, 0.3, enough=2)
    expected = search.choose(10)
    assert expected != list(range(10))
    assert result.images[subject.name] == [subject.data[index].id for index in expected]
    assert result.subjects[0]["num_images"] == 10
    assert result.subjects[0]["data_fingerprint"] == subject.data.fingerprint()
    wrong = sum(result.one(type=kind, metric="count").values[0] for kind in ERRORS) > 0
    assert wrong.tolist() == [any(index in each for each in search.found.values()) for index in expected]
    assert f"{int(wrong.sum())} of the 10 images were chosen for their errors, out of 60" in result.notes[0]
    monkeypatch.setattr(StagedModel, "run", None)
    control = with_errors(subject, threshold=0.3, among=60)  # which is known already
    assert control.ids == result.images[subject.name]
    control.control = "untrained inverse"
    assert with_errors(control, threshold=0.3, among=60) is control


def test_contract(tmp_path: Path) -> None:
    loaded = check_contract("detection_errors", [random_subject("detr")], tmp_path, threshold=0.2, num_shown=1)
    assert loaded.values_of("type") == list(OUTCOMES)
    assert loaded.pictures


@pytest.mark.parametrize("family", quick(["detr", "deformable_detr"], "detr"))
def test_queries_of_every_family_paint_something(family: str) -> None:
    result = measure(random_subject(family), threshold=0.2, num_shown=0)
    for stage in ("decoder", "prediction"):
        painted = result.select(stage=stage, metric="painted by query")
        assert any(each.known().numel() and each.mean() > 0 for each in painted)
    assert result.pictures == []


def test_boxes_stand_in_for_masks_and_crowds_are_left_out(detector) -> None:
    subject = painted(detector, paint_grey, LAW, 1, batch_size=6)
    (batch,) = subject.batches
    boxes = torch.tensor([[10.0, 20, 30, 40], [50, 50, 90, 90]])
    target = Target(boxes, torch.zeros(2, dtype=torch.int64), None, torch.tensor([False, True]))
    object.__setattr__(batch, "targets", (target,))
    (case,) = find_cases(subject, batch, 1.1)
    assert case.finding.outcome == "missed"
    assert case.query is None
    assert torch.equal(case.mask, fill_boxes(boxes[:1], (96, 96))[0])


# ---- drawing on pictures


def test_an_outline_is_the_border_of_a_region() -> None:
    drawn = outline(torch.zeros(3, SIDE, SIDE), square()[0], "#ff0000")
    assert torch.equal(drawn[0] > 0, square()[0] & ~square(9, 23)[0])
    assert (drawn[1:] == 0).all()
    whole = outline(torch.zeros(3, SIDE, SIDE), torch.ones(SIDE, SIDE, dtype=torch.bool), "#ff0000")
    assert int((whole[0] > 0).sum()) == 4 * (SIDE - 1)


def test_a_crop_holds_its_boxes_and_stays_inside() -> None:
    rows, columns = crop_around(torch.tensor([[10.0, 50, 20, 60]]), (100, 200), least=16)
    assert (rows, columns) == (slice(45, 65), slice(5, 25))
    assert crop_around(torch.tensor([[90.0, 90, 99, 99]]), (100, 100)) == (slice(68, 100), slice(68, 100))
    assert crop_around(torch.tensor([[0.0, 0, 100, 80]]), (80, 100)) == (slice(0, 80), slice(0, 100))


def test_boxes_are_drawn_on_the_enlarged_crop() -> None:
    box = torch.tensor([8.0, 8, 24, 24])
    shown = cut_out(torch.zeros(3, SIDE, SIDE), box[None], [(box, "#00ff00"), (box, "#ff0000")], 96)
    assert shown.shape == (3, 96, 96)
    green, red = shown[1] > 0, shown[0] > 0
    border = torch.zeros(96, 96, dtype=torch.bool)
    border[24:72, 24:72] = True
    border[25:71, 25:71] = False
    assert torch.equal(green | red, border)
    assert green.any()
    assert red.any()
    assert not (green & red).any()

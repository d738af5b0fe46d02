"""What fades: known answers, regions, a contract over families; and the numbers of regions that it is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backsight.data import Target, open_data
from backsight.experiments.abstraction import divide, measure
from backsight.metrics import contrast_kept
from known_chains import check_contract, random_subject
from stand_in_chains import paint_grey, paint_input, painted


@pytest.fixture(scope="module")
def scenes(detector):
    return open_data("world:independent", detector.pixels).test


# ---- contrast


def test_contrast_of_known_pictures() -> None:
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 2:6, 2:6] = True
    for other, contrast, pattern in [
        (image, 1, 1),
        (0.5 * image + 0.2, 0.5, 0.5),
        (1 - image, 1, -1),
        (torch.full_like(image, 0.3), 0, 0),
        (torch.where(mask[:, None], 0.3, image), 0, 0),
    ]:
        assert [float(each) for each in contrast_kept(image, other, mask)] == pytest.approx(
            [contrast, pattern], abs=1e-6
        )


def test_stains_are_contrast_but_no_pattern() -> None:
    generator = torch.Generator().manual_seed(0)
    image, stains = torch.rand(1, 3, 64, 64, generator=generator), torch.rand(1, 3, 64, 64, generator=generator)
    contrast, pattern = contrast_kept(image, stains, torch.ones(1, 64, 64, dtype=torch.bool))
    assert float(contrast) == pytest.approx(1, abs=0.05)
    assert float(pattern) == pytest.approx(0, abs=0.05)


def test_plain_and_empty_regions_have_no_answer() -> None:
    plain = torch.full((2, 3, 8, 8), 0.5)
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask[1] = False
    for values in (*contrast_kept(plain, plain, mask), *contrast_kept(torch.rand(2, 3, 8, 8), plain, mask & False)):
        assert values.isnan().all()


# ---- the experiment


@pytest.mark.parametrize(("paint", "kept"), [(paint_input, 1.0), (paint_grey, 0.0)])
def test_known_answers(detector, scenes, paint, kept: float) -> None:
    subject = painted(detector, paint, scenes, 24)
    result = measure(subject)
    for metric in ("contrast kept", "pattern kept"):
        for each in result.select(metric=metric):
            assert each.known().shape[0] == 2
            assert each.known().shape[1] >= 1
            assert each.known().flatten().tolist() == pytest.approx([kept] * each.known().numel(), abs=1e-6)
    if paint is paint_input:
        assert {each.mean() for each in result.select(metric="mse", stage="decoder")} == {0.0}


def test_the_mean_image_is_the_unit_of_every_region(detector, scenes) -> None:
    mean = torch.full((3, 96, 96), 0.5)
    subject = painted(detector, paint_grey, scenes, 12, mean_image=mean)
    result = measure(subject)
    regions = result.values_of("region")
    assert regions == ["detected", "undetected", "object", "background"]
    for region in regions:
        for stage in ("mean image", *detector.stages):
            assert result.one(region=region, stage=stage, metric="relative mse").mean() == pytest.approx(1)


def test_regions_divide_the_pixels(detector, scenes) -> None:
    subject = painted(detector, paint_grey, scenes, 16)
    (batch,) = subject.batches
    regions = divide(subject, batch, 0.5)
    assert torch.equal(regions["detected"] | regions["undetected"], regions["object"])
    assert not (regions["detected"] & regions["undetected"]).any()
    assert torch.equal(regions["object"], ~regions["background"])
    masks = torch.stack([target.masks.any(0) for target in batch.targets])
    assert torch.equal(regions["object"], masks)
    assert regions["detected"].any()
    # Nothing is sure enough: all that is there is undetected.
    regions = divide(subject, batch, 1.1)
    assert torch.equal(regions["undetected"], masks)


def test_crowds_are_in_no_region(detector, scenes) -> None:
    subject = painted(detector, paint_grey, scenes, 2)
    (batch,) = subject.batches
    masks = torch.zeros(2, 96, 96, dtype=torch.bool)
    masks[0, :20, :20] = True
    masks[1, 10:40, 10:40] = True  # the crowd
    boxes = torch.tensor([[0.0, 0, 20, 20], [10, 10, 40, 40]])
    target = Target(boxes, torch.zeros(2, dtype=torch.int64), masks, torch.tensor([False, True]))
    object.__setattr__(batch, "targets", (target, Target(masks=torch.zeros(0, 96, 96, dtype=torch.bool))))
    regions = divide(subject, batch, 1.1)
    assert torch.equal(regions["object"][0], masks[0])
    assert torch.equal(regions["background"][0], ~masks.any(0))
    assert regions["background"][1].all()
    assert not regions["detected"].any()


@pytest.mark.parametrize("family", ["detr", "vit"])
def test_contract(family: str, tmp_path: Path) -> None:
    subject = random_subject(family)
    result = check_contract("abstraction", [subject], tmp_path, threshold=0.0, num_shown=1)
    regions = ["detected", "undetected"] if family == "detr" else []
    assert result.values_of("region") == [*regions, "object", "background"]
    stages = result.values_of("stage")
    assert stages[:-1] == ["mean image", *subject.stages][: len(stages) - 1]
    for each in result.select(metric="mse", region="background"):
        assert each.values.shape[1] == 4
        assert each.values.isfinite().all()

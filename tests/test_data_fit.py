"""Fitting a picture is what the model libraries do, and what is known of it moves along."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.config import resolve_model_data_config
from timm.data.transforms import ResizeKeepRatio, str_to_interp_mode
from timm.data.transforms_factory import create_transform, transforms_imagenet_eval
from torch import Tensor
from torchvision.transforms.v2 import functional
from transformers import DetrImageProcessor

from backsight.core import Pixels
from backsight.data import Target, fit, fit_target
from backsight.data.resize import place
from backsight.models import timm as timm_models
from numerics import assert_rounding
from pictures import drawn

SIZES = [(75, 100), (100, 75), (231, 173), (60, 300), (64, 64), (31, 47)]
SIDES = st.integers(1, 300)


def tensor(image: Any) -> Tensor:
    return functional.pil_to_tensor(image)


def assert_alike(ours: Tensor, theirs: Tensor, interpolation: str) -> None:
    """Within one grey level. Bicubic rounds between its two passes, and torch takes them in another order than
    Pillow: up to three levels, in less than one of a thousand values."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.uint8
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= (3 if interpolation == "bicubic" else 1)
    assert (difference > 1).float().mean() < 1e-3


@pytest.mark.parametrize("original", SIZES)
@pytest.mark.parametrize("size", [(64, 64), (48, 96), (112, 80)])
@pytest.mark.parametrize(("fraction", "interpolation"), [(0.9, "bicubic"), (0.875, "bilinear"), (1.0, "lanczos")])
def test_crop_is_timms_evaluation(
    original: tuple[int, int], size: tuple[int, int], fraction: float, interpolation: Any
) -> None:
    image = drawn(*original)
    pixels = Pixels(size, interpolation=interpolation, fit="crop", crop_fraction=fraction)
    theirs: Any = transforms_imagenet_eval(size, fraction, interpolation=interpolation, normalize=False)
    if isinstance(theirs.transforms[0], ResizeKeepRatio):  # which timm before 1.0.31 forgot to tell
        theirs.transforms[0].interpolation = str_to_interp_mode(interpolation)
    assert_alike(fit(tensor(image), pixels), theirs(image), interpolation)


@pytest.mark.parametrize("original", SIZES)
@pytest.mark.parametrize("fraction", [0.875, 1.0])
def test_stretch_is_timms_squash(original: tuple[int, int], fraction: float) -> None:
    image = drawn(*original)
    pixels = Pixels((48, 96), interpolation="bicubic", crop_fraction=fraction)
    theirs: Any = transforms_imagenet_eval((48, 96), fraction, "squash", interpolation="bicubic", normalize=False)(
        image
    )
    assert_alike(fit(tensor(image), pixels), theirs, "bicubic")


@pytest.mark.parametrize("original", [(300, 600), (600, 300)])
@pytest.mark.parametrize(
    ("architecture", "mode"), [("eva02_base_patch14_448", "stretch"), ("vit_base_patch16_224", "crop")]
)
def test_a_model_of_timm_sees_what_timm_evaluates_it_on(
    architecture: str, mode: str, original: tuple[int, int]
) -> None:
    with torch.device("meta"):
        module = timm.create_model(architecture)
    pixels = timm_models.pixels(module, None)
    assert pixels.fit == mode
    image = drawn(*original)
    transform: Any = create_transform(**resolve_model_data_config(module), normalize=False)
    assert_alike(fit(tensor(image), pixels), transform(image), pixels.interpolation)


def test_a_model_that_timm_pads_for_is_cropped_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with torch.device("meta"):
        module: Any = timm.create_model("test_vit")
    module.pretrained_cfg = {**module.pretrained_cfg, "crop_mode": "border"}
    with caplog.at_level("INFO", logger="backsight"):
        assert timm_models.pixels(module, None).fit == "crop"
    assert "crop mode 'border'" in caplog.text


@pytest.mark.parametrize("original", SIZES)
def test_stretch_is_the_detr_processor(original: tuple[int, int]) -> None:
    image = drawn(*original)
    processor: Any = DetrImageProcessor(size={"height": 96, "width": 128}, do_rescale=False, do_normalize=False)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0].to(torch.uint8)
    assert_alike(fit(tensor(image), Pixels((96, 128))), theirs, "bilinear")


def test_the_detr_processor_moves_boxes_and_masks_alike() -> None:
    image, target = drawn(75, 100), target_of(rectangle(75, 100))
    processor: Any = DetrImageProcessor(size={"height": 96, "width": 128})
    annotation = {"image_id": 1, "annotations": [{"bbox": [10, 20, 60, 40], "category_id": 3, "area": 1, "iscrowd": 0}]}
    labels = processor(image, annotations=annotation, return_tensors="pt")["labels"][0]
    centre, size = (labels["boxes"] * torch.tensor([128, 96, 128, 96])).split(2, dim=1)
    fitted = fit_target(target, (75, 100), Pixels((96, 128)))
    torch.testing.assert_close(fitted.boxes, torch.cat([centre - size / 2, centre + size / 2], dim=1))
    assert bounds(fitted.masks[0]) == pytest.approx(fitted.boxes[0].tolist(), abs=1)


def target_of(mask: Tensor) -> Target:
    return Target(torch.tensor([[10.0, 20, 70, 60]]), torch.tensor([3]), mask, torch.tensor([False]))


def rectangle(rows: int, columns: int) -> Tensor:
    mask = torch.zeros(1, rows, columns, dtype=torch.bool)
    mask[:, 20:60, 10:70] = True
    return mask


def bounds(mask: Tensor) -> list[int]:
    rows, columns = mask.nonzero().unbind(1)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from([0.8, 0.875, 0.9, 0.95, 1.0]), st.sampled_from(["crop", "stretch"]))
def test_the_window_lies_in_the_scaled_picture(
    rows: int, columns: int, height: int, width: int, fraction: float, way: Any
) -> None:
    placement = place((rows, columns), Pixels((height, width), fit=way, crop_fraction=fraction))
    top, left = placement.corner
    assert 0 <= top <= placement.scaled[0] - height
    assert 0 <= left <= placement.scaled[1] - width


def test_a_mark_in_the_picture_stays_under_its_box_and_mask() -> None:
    image, mask = torch.zeros(3, 75, 100, dtype=torch.uint8), rectangle(75, 100)
    image[:, mask[0]] = 255
    for pixels in (Pixels((96, 64)), Pixels((64, 64), fit="crop", crop_fraction=0.8), Pixels((30, 90), fit="crop")):
        fitted = fit_target(target_of(mask), (75, 100), pixels)
        bright = fit(image, pixels)[0] > 127
        assert bounds(bright) == pytest.approx(fitted.boxes[0].tolist(), abs=1)
        assert (fitted.masks[0] ^ bright).float().mean() < 0.02


def test_what_falls_outside_or_has_no_size_is_dropped_everywhere() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [40, 0, 60, 50], [45, 10, 45, 20], [20, 0, 30, 50]])
    target = Target(
        boxes,
        labels=torch.tensor([1, 2, 3, 4]),
        masks=torch.ones(4, 50, 100, dtype=torch.bool),
        crowd=torch.tensor([False, True, False, False]),
        label=7,
        attributes={"hue": torch.arange(4)},
    )
    fitted = fit_target(target, (50, 100), Pixels((50, 50), fit="crop"))  # columns 25 to 75 are seen
    assert fitted.boxes.tolist() == [[15, 0, 35, 50], [0, 0, 5, 50]]
    assert fitted.labels.tolist() == [2, 4]
    assert fitted.crowd.tolist() == [True, False]
    assert fitted.attributes["hue"].tolist() == [1, 3]
    assert fitted.masks.shape == (2, 50, 50)
    assert fitted.label == 7


# ---- the model's own space


def test_pixels_are_taken_to_the_model_s_space_and_back() -> None:
    pixels = Pixels((2, 3), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    white = torch.ones(1, 3, 2, 3)
    assert pixels.normalise(white)[0, :, 0, 0].tolist() == [1, 3, 0.5]
    assert_rounding(pixels.restore(pixels.normalise(white)), white)

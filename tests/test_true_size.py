"""Every family at true size with random weights: the sites hold in the models that people use too."""

from __future__ import annotations

import pytest

from backsight.models import MODELS, load_model
from backsight.verification import verify

TRUE: dict[str, tuple[int, int] | None] = {
    "vit_base_patch16_224": None,
    "eva02_base_patch14_224": None,
    "vit_small_patch16_dinov3": None,
    "vit_base_patch16_dinov3": None,
    "swin_base_patch4_window7_224": None,
    "resnet50": None,
    "convnext_tiny": None,
    "vit-base-patch16-224": None,
    "dino-vitb16": None,
    "dinov2-base": None,
    "dinov2-with-registers-base": None,
    "detr-resnet-50": (256, 320),
    "conditional-detr-resnet-50": (256, 320),
    "dab-detr-resnet-50": (256, 320),
    "table-transformer-detection": (256, 320),
    "deformable-detr": (192, 256),
    "deformable-detr-with-box-refine": (192, 256),
    "deformable-detr-with-box-refine-two-stage": (192, 256),
    "rtdetr-r18": (256, 320),
    "rtdetr-v2-r18": (256, 320),
    "rtdetr-v2-r50": (256, 320),
    "dfine-small-coco": (256, 320),
    "dfine-large-coco": (256, 320),
    "yolos-tiny": (256, 320),
    "yolos-base": (256, 320),
    "lwdetr-tiny": (320, 320),
    "lwdetr-small": (320, 320),
    "rf-detr-nano": (288, 288),
    "rf-detr-base": (280, 280),
}
"""Well-known models, and the size of the images, None for their own: a detector's sites are the same at any."""


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUE)
def test_every_site_holds(name: str) -> None:
    model = load_model(name, random_weights=True, size=TRUE[name])
    checks = list(verify(model))
    assert [check.name for check in checks] == model.names
    assert [check.name for check in checks if not check.passed] == []


def test_no_family_is_left_out() -> None:
    known = {short: family.name for family in MODELS.values() for short in family.names}
    assert {known[name] for name in TRUE} == set(MODELS)

"""Ground truth -> the model's own loss: the library's set loss, cross-entropy, and who has no part in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from backsight.core import UserError
from backsight.data import Target
from backsight.engine import StagedModel
from backsight.models import MODELS
from backsight.tasks import answer, as_labels, check_truth
from small import build_small, random_images


def target(*boxes: tuple[float, float, float, float], label: int | None = None, crowd: tuple[int, ...] = ()) -> Target:
    """Objects of the classes 0, 1, ... in ``boxes``; those at the places ``crowd`` are crowds."""
    regions = torch.zeros(len(boxes), dtype=torch.bool)
    regions[list(crowd)] = True
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.arange(len(boxes)), None, regions, label)


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


CLASSIFIERS = ("vit-transformers", "dinov2", "dinov2_with_registers")
DETECTORS = [name for name, each in MODELS.items() if each.library == "transformers" and name not in CLASSIFIERS]


@pytest.mark.parametrize("family", DETECTORS)
def test_a_detector_s_loss_is_its_library_s_own(family: str, small_model: Callable[[str], StagedModel]):
    model = small_model(family)
    images = random_images(model)
    features, loss = answer(model, images, ["encoder"], [ONE, TWO])
    torch.testing.assert_close(loss, library_loss(model, images, [ONE, TWO]))
    assert torch.equal(features["encoder"], model.features(images, ["encoder"])["encoder"])


def test_images_without_truth_give_features_and_no_loss(small_model: Callable[[str], StagedModel]):
    model = small_model("detr")
    images = random_images(model, batch=5)
    features, loss = answer(model, images, ["decoder"], [NONE, TWO, CROWD, ONE, NONE])
    torch.testing.assert_close(loss, library_loss(model, images[[1, 3]], [TWO, ONE]))
    torch.testing.assert_close(features["decoder"], model.features(images, ["decoder"])["decoder"])
    features, loss = answer(model, images[:2], ["decoder"], [NONE, CROWD])
    assert loss.item() == 0
    assert features["decoder"].shape[0] == 2


def test_a_crowd_is_no_object(small_model: Callable[[str], StagedModel]):
    model = small_model("detr")
    images = random_images(model, batch=1)
    mixed = target((8, 4, 40, 36), (0, 0, 90, 60), crowd=(1,))
    torch.testing.assert_close(answer(model, images, (), [mixed])[1], library_loss(model, images, [ONE]))


def test_boxes_are_shares_of_the_picture_where_it_is_padded():
    images, valid = torch.zeros(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool)
    valid[:, :32, :80] = True
    (label,) = as_labels([ONE], images, valid)
    torch.testing.assert_close(label["boxes"], shares([[8, 4, 40, 36]], 32, 80))
    (whole,) = as_labels([ONE], images)
    torch.testing.assert_close(whole["boxes"], shares([[8, 4, 40, 36]], 64, 96))


@pytest.mark.parametrize("family", ["vit", "vit-transformers", "swin"])
def test_a_classifier_s_loss_is_the_cross_entropy_of_the_known(family: str, small_model: Callable[[str], StagedModel]):
    model = small_model(family)
    images = random_images(model, batch=3)
    _, loss = answer(model, images, ["encoder" if "encoder" in model.stages else model.stages[-1]], [
        target(label=1), target(), target(label=0)
    ])  # fmt: skip
    logits = model.predict(model.run(images)).logits
    torch.testing.assert_close(loss, functional.cross_entropy(logits[[0, 2]], torch.tensor([1, 0])))
    assert answer(model, images, (), [target()] * 3)[1].item() == 0


def test_a_model_that_predicts_nothing_cannot_be_taught(small_model: Callable[[str], StagedModel]):
    class Photos:
        name, classes = "photos", {0: "cat"}

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> None:
            return None

    model = small_model("vit")
    with pytest.raises(UserError, match=r"needs ground truth, and photos has no class of the whole image"):
        check_truth(model, Photos())
    mute = build_small("vit")
    object.__setattr__(mute.spec, "task", "features")
    with pytest.raises(UserError, match="predicts nothing that it could be taught"):
        check_truth(mute, Photos())

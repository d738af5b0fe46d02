"""Verification: every family passes, and each kind of wrong site fails the check that is meant for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from backsight.core import Site, UserError
from backsight.engine import RANDOM
from backsight.models import MODELS, load_model
from backsight.verification import SiteCheck, scramble, tensors, verify
from small import build_small, stage_toy


@pytest.mark.parametrize("family", MODELS)
def test_every_site_of_every_family_holds(family: str) -> None:
    model = build_small(family)
    checks = list(verify(model, batch_size=2))
    assert [check.name for check in checks] == model.names
    assert [check.name for check in checks if not check.passed] == []
    assert all(check.shape == (model.layout(check.name).tokens, model.layout(check.name).width) for check in checks)


class Toy(nn.Module):
    """Patches, a middle, an end; ``join`` says what becomes of the middle."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.patches, self.middle, self.end = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.join = join

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images)
        return self.end(self.join(patches, self.middle(patches)))


def check_middle(join: Callable[[Tensor, Tensor], Tensor]) -> SiteCheck:
    sites = {name: Site(name, pattern="b d h w") for name in ("patches", "middle")}
    patches, middle = verify(stage_toy(Toy(join), sites))
    assert patches.passed or not patches.identity
    return middle


def test_a_site_that_is_read_passes() -> None:
    assert check_middle(lambda _, middle: middle).results == (True, True, True, True)


def test_a_dead_branch_is_caught() -> None:
    dead = check_middle(lambda patches, _: patches)
    assert dead.identity, "replaying it proves nothing"
    assert dead.results == (True, False, False, True)
    assert not dead.passed


def test_a_detached_branch_is_caught() -> None:
    detached = check_middle(lambda patches, middle: patches + middle.detach())
    assert detached.results == (True, True, False, True)
    assert not detached.passed


def test_a_branch_times_nothing_is_caught() -> None:
    assert not check_middle(lambda patches, middle: patches + 0 * middle).passed


def test_a_model_that_never_says_the_same_twice_is_caught() -> None:
    with pytest.raises(UserError, match="random"):
        check_middle(lambda _, middle: nn.functional.dropout(middle, training=True))


def test_a_head_of_zeros_hides_nothing_in_random_models() -> None:
    toy = Toy(lambda _, middle: middle)
    for parameter in toy.end.parameters():
        nn.init.zeros_(parameter)
    model = stage_toy(toy, {"middle": Site("middle", pattern="b d h w")})
    with pytest.raises(UserError, match="same for every image"):
        list(verify(model))
    model.weights = RANDOM
    (check,) = verify(model)
    assert check.passed


def test_given_weights_are_left_alone() -> None:
    model = build_small("vit")
    model.weights = "given"
    digest = model.digest()
    assert all(check.passed for check in verify(model))
    assert model.digest() == digest


def test_scrambling_moves_every_parameter_and_statistic() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = {name: value.clone() for name, value in module.state_dict().items()}
    scramble(module, torch.Generator().manual_seed(0))
    for name, value in module.state_dict().items():
        assert (name == "1.num_batches_tracked") == torch.equal(value, state[name])
    assert (module.state_dict()["1.running_var"] > 0).all()


def test_the_tensors_of_an_output_are_found_in_order() -> None:
    one, two, three = torch.rand(1), torch.rand(2), torch.rand(3)
    output = ModelOutput(logits=one, hidden=(two, [three]), loss=None, index=torch.tensor(1))
    assert [each.numel() for each in tensors(output)] == [1, 2, 3]
    assert tensors("nothing") == []


# ---- at true size


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
    "grounding-dino-tiny": (256, 320),
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

"""Models of transformers and torchvision that no family describes, and proposals for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from torch import Tensor

import backsight as bs
from backsight.catalogue import check_inverses
from backsight.cli import main
from backsight.engine import RANDOM, StagedModel
from backsight.models import MODELS, load_model
from backsight.verification import verify
from marks import quick
from numerics import assert_rounding
from small import random_images, train_and_reconstruct
from undescribed import ANY_PATCHES, PROPOSED, UNDESCRIBED, Undescribed

OF_A_KIND = (
    *("deit distilled", "beit", "vit_mae", "swinv2", "resnet", "dinov3", "dinov3 convnext", "clip", "clip classifier"),
    *("siglip2", "segformer", "dpt", "depth anything", "owlv2", "sam", "sam2 vision"),
)
"""One of each kind of network, which stand for those like it in the fast suite."""


def failures(model: StagedModel) -> list[str]:
    return [check.name for check in verify(model) if not check.passed]


def load(each: Undescribed, folder: Path) -> StagedModel:
    return load_model(str(each.save(folder)), size=each.size)


@pytest.mark.parametrize("name", quick(UNDESCRIBED, *OF_A_KIND))
def test_a_type_that_no_family_describes_is_staged_by_its_repeated_blocks(name: str, tmp_path: Path) -> None:
    each = UNDESCRIBED[name]
    model = load(each, tmp_path)
    assert (model.stages[0], model.stages[-1]) == each.stages
    assert model.spec.task == each.task
    check_inverses(model)
    assert failures(model) == []
    assert all(model.layout(stage).grids for stage in model.stages)
    if each.task != "features":
        model.predict(model.run(random_images(model)))


@pytest.mark.slow
@pytest.mark.parametrize("name", UNDESCRIBED)
def test_such_a_model_is_trained_and_reconstructs_a_picture(name: str, tmp_path: Path) -> None:
    model = load(UNDESCRIBED[name], tmp_path / "model")
    train_and_reconstruct(model, tmp_path, given=model)


@pytest.mark.parametrize("name", quick(PROPOSED, "clip", "vit_mae", "owlv2"))
def test_a_proposal_holds_and_names_the_arguments_that_a_pass_needs(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    each, file = PROPOSED[name], tmp_path / "proposal.yaml"
    folder = each.save(tmp_path / "model")
    size = ["--size", f"{each.size[0]}x{each.size[1]}"] if each.size else []
    main(["stages", str(folder), "--propose", str(file), "--device", "cpu", *size])
    capsys.readouterr()
    texts = {"input_ids"} if "text_config" in each.options else set()
    said = yaml.safe_load(file.read_text())
    assert said.get("arguments", {}).keys() == ({"noise"} if name == "vit_mae" else texts)
    model = load_model(str(folder), size=each.size, spec=file, random_weights=True)
    assert (model.stages[0], model.stages[-1]) == each.stages
    assert model.spec.task == each.task
    check_inverses(model)
    assert failures(model) == []


def test_siglip_2_sees_the_patches_that_its_own_processor_cuts(tmp_path: Path) -> None:
    from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel

    torch.manual_seed(0)
    module = Siglip2VisionModel(Siglip2VisionConfig(**ANY_PATCHES)).eval()
    picture = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    cut = Siglip2ImageProcessor(patch_size=8, max_num_patches=48)(picture, return_tensors="pt", do_resize=False)
    with torch.no_grad():
        expected = module(**cut).last_hidden_state
    module.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), size=(48, 64))
    images: Tensor = (picture / 255)[None]
    mean, std = torch.tensor(model.pixels.mean), torch.tensor(model.pixels.std)
    same = ((images - 0.5) / 0.5) * std.view(3, 1, 1) + mean.view(3, 1, 1)  # what gives the processor's values here
    assert_rounding(model.module(model.pixels.normalise(same)).last_hidden_state, expected, 1e-4)


# ---- modules that are given


@pytest.mark.parametrize("family", ["vit", "dinov2", "table_transformer"])
def test_a_module_of_a_known_class_needs_no_spec(family: str) -> None:
    module: Any = MODELS[family].small()
    size = (64, 96) if family == "table_transformer" else None
    model = bs.stage(module, size=size, weights=RANDOM)
    assert model.spec.family == family
    assert failures(model) == []


def vision_transformer() -> Any:
    from torchvision.models import VisionTransformer

    sizes: dict[str, Any] = {"num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64, "num_classes": 4}
    return VisionTransformer(image_size=48, patch_size=8, **sizes)


def swin() -> Any:
    from torchvision.models import SwinTransformer

    sizes: dict[str, Any] = {"embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": [4, 4]}
    return SwinTransformer(patch_size=[4, 4], num_classes=4, **sizes)


def detector_backbone() -> Any:
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    return resnet_fpn_backbone(backbone_name="resnet18", weights=None)


def detector() -> Any:
    from torchvision.models.detection import FasterRCNN

    few: dict[str, Any] = {"rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 50}
    return FasterRCNN(detector_backbone(), num_classes=5, min_size=64, **few)


@pytest.mark.parametrize(
    ("build", "size", "stages"),
    [
        (vision_transformer, (48, 48), ["backbone", "encoder"]),
        (swin, (64, 64), ["backbone", "stage1", "map", "stage2"]),
        (torchvision.models.resnet18, (64, 64), ["backbone", "layer1", "layer2", "layer3", "layer4"]),
        (detector_backbone, (64, 96), ["backbone", "layer1", "layer2", "layer3", "layer4"]),
        pytest.param(
            *(detector, (64, 96), ["backbone", "layer1", "layer2", "layer3", "layer4"]), marks=pytest.mark.slow
        ),
    ],
)
def test_a_module_of_torchvision_is_staged_by_its_repeated_blocks(
    build: Any, size: tuple[int, int], stages: list[str]
) -> None:
    torch.manual_seed(0)
    model = bs.stage(build(), size=size, weights=RANDOM)
    assert model.stages == stages
    check_inverses(model)
    assert failures(model) == []


def test_a_detector_of_torchvision_sees_images_as_they_are_and_normalises_them_once() -> None:
    torch.manual_seed(0)
    module = detector()
    model = bs.stage(module, size=(64, 96))
    seen: list[Tensor] = []
    module.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = random_images(model)
    model.run(images)
    expected = torchvision.transforms.functional.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert_rounding(seen[0], expected)
    assert bs.stage(detector()).pixels.size == (64, 64)
    with pytest.raises(bs.UserError, match="give multiples of 32"):
        bs.stage(module, size=(64, 90))


def test_a_given_module_is_trained_and_opened_again_by_hand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = bs.stage(vision_transformer(), size=(48, 48))
    train_and_reconstruct(model, tmp_path, given=model)
    with pytest.raises(bs.UserError, match="was given in Python"):
        bs.reconstruct(tmp_path / "run", [tmp_path / "photo.jpg"], tmp_path / "again", device="cpu")

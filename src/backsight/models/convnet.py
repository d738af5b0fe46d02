"""timm's ResNet and ConvNeXt: the convolutional networks to compare transformers with."""

from __future__ import annotations

from typing import Any

from torch import nn

from backsight.core import Site, Spec, Stage
from backsight.models.family import Family
from backsight.models.vit import read_classes

MAP = "b d h w"


def stage(module: Any) -> Spec:
    """Backbone: the stem. Then the library's own cuts, one for every resolution: ``stage1`` ... ``stage4``."""
    cuts = [cut["module"] for cut in module.feature_info]
    if hasattr(module, "stem"):  # ConvNeXt leaves its stem out of the list
        cuts.insert(0, "stem")
    names = ["backbone", *(f"stage{number}" for number in range(1, len(cuts)))]
    return Spec(
        family=type(module).__name__.lower(),
        task="classify" if module.num_classes else "features",
        stages=tuple(_stage(name, cut, module) for name, cut in zip(names, cuts, strict=True)),
    )


def _stage(name: str, path: str, module: nn.Module) -> Stage:
    inside = f"{path}.blocks" if hasattr(module.get_submodule(path), "blocks") else path
    blocks = [] if name == "backbone" else list(module.get_submodule(inside).children())
    layers = tuple(Site(f"{inside}.{index}", pattern=MAP) for index in range(len(blocks)))
    return Stage(name, (Site(path, pattern=MAP),), layers, inverses={"": ("residual", {})})


def small_resnet() -> nn.Module:
    """One bottleneck block a stage, 64 x 64 pixels."""
    from timm.models.resnet import Bottleneck, ResNet

    block: Any = Bottleneck
    module: Any = ResNet(block, (1, 1, 2, 1), num_classes=5, channels=(4, 4, 8, 8), stem_width=8)
    module.pretrained_cfg = {"input_size": (3, 64, 64)}
    return module


def small_convnext() -> nn.Module:
    """One block a stage, 64 x 64 pixels."""
    from timm.models.convnext import ConvNeXt

    module: Any = ConvNeXt(num_classes=5, depths=(1, 1, 2, 1), dims=(8, 16, 16, 24))
    module.pretrained_cfg = {"input_size": (3, 64, 64)}
    return module


_RESNETS = {"resnet18": "timm/resnet18.a1_in1k", "resnet50": "timm/resnet50.a1_in1k"}
_CONVNEXTS = {
    "convnext_tiny": "timm/convnext_tiny.in12k_ft_in1k",
    "convnext_base": "timm/convnext_base.fb_in22k_ft_in1k",
}
RESNET = Family("resnet", "timm", "ResNet", _RESNETS, stage, read_classes, small_resnet)
CONVNEXT = Family("convnext", "timm", "ConvNeXt", _CONVNEXTS, stage, read_classes, small_convnext)

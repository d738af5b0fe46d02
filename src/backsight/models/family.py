"""What a family of models states: how its library calls it, where its stages are, how its prediction reads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from backsight.core import Classes, Detections, Pixels, Spec
from backsight.engine import StagedModel

Read = Callable[[Any, tuple[int, int]], Classes | list[Detections]]
"""A model's own output and the image size (H, W) -> classes, or detections for each image."""


@dataclass(frozen=True)
class Family:
    """One family of models: data, hardly any code.

    Attributes:
        name: the family's own name, the key in ``MODELS``.
        library: whose models they are.
        kind: what the library calls them: timm's class name, or the ``model_type`` of a transformers configuration.
        names: well-known models, short name -> name on the hub.
        stage: a loaded module -> its :class:`~backsight.core.Spec`.
        read: a loaded module -> how its output reads as a prediction.
        small: a small randomly initialised module of the family, for the tests.
        configure: keyword arguments of the library's configuration for a true-size model of a short name
            with random weights (transformers only; timm knows its own).
        size: the image size (H, W) where the model itself does not name one.
        preprocess: what ``preprocessor_config.json`` of a short name says on the hub, for models built without it
            (transformers only).
        arguments: keyword arguments of every forward pass.
        constants: static tensors of the model that some inverses use; None: they need nothing.
        check_size: refuses, by a :class:`~backsight.core.UserError`, images (H, W) that a loaded module cannot take;
            None: it takes any size, or its library says itself which.
    """

    name: str
    library: Literal["timm", "transformers"]
    kind: str
    names: Mapping[str, str]
    stage: Callable[[nn.Module], Spec]
    read: Callable[[nn.Module], Read]
    small: Callable[[], nn.Module]
    configure: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    size: tuple[int, int] = (224, 224)
    preprocess: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    constants: Callable[[nn.Module], Mapping[str, Tensor]] | None = None
    check_size: Callable[[nn.Module, tuple[int, int]], None] | None = None


class FamilyModel(StagedModel):
    """A staged model that knows its family, which says how its output reads and what its constants are.

    A model of one's own is none, whatever its spec calls its family.
    """

    def __init__(self, module: nn.Module, family: Family, spec: Spec, pixels: Pixels, **options: Any) -> None:
        read = None if spec.task == "features" else family.read(module)
        constants = family.constants(module) if family.constants else None
        super().__init__(module, spec, pixels, read=read, constants=constants, **options)
        self.family = family


def duplicate(model: StagedModel) -> StagedModel:
    """A staged model with weights of its own, equal to those of ``model``, and the same name, sites and pixels."""
    module = copy.deepcopy(model.module)
    same: dict[str, Any] = {"name": model.name, "weights": model.weights}
    same |= {"arguments": model.arguments, "reopen": model.reopen}
    if isinstance(model, FamilyModel):  # what it reads with, and its constants, are of the copied weights
        return FamilyModel(module, model.family, model.spec, model.pixels, **same)
    constants = {name: value.clone() for name, value in model.constants.items()}
    return StagedModel(module, model.spec, model.pixels, read=model.read, constants=constants, **same)

"""Staging a module that the user holds in Python."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from backsight.core import Pixels
from backsight.engine import StagedModel
from backsight.models import timm as timm_models
from backsight.models import transformers as transformers_models
from backsight.models.custom import SpecLike, stage_by_spec, unwrapped
from backsight.models.family import Family, Read
from backsight.models.inputs import settled
from backsight.models.load import family_of, stage_automatically, stage_module


def stage(
    module: nn.Module,
    spec: SpecLike | None = None,
    *,
    pixels: Pixels | None = None,
    size: tuple[int, int] | None = None,
    name: str | None = None,
    weights: str = "given",
    read: Read | None = None,
) -> StagedModel:
    """Stage a module that you hold, by a ``spec``, or without one if timm or transformers made it, or its blocks tell.

    Without a spec a known class is staged as :func:`~backsight.models.load_model` does it, any other by its rows of
    repeated blocks. With one, a pass over random images checks that each of its sites is there.

    Args:
        module: your model; it is put into eval mode and its parameters stop requiring gradients.
        spec: a YAML file, a dictionary of the same form, or a :class:`~backsight.core.Spec`.
        pixels: what the model expects of an image, in place of what the spec or its library says; a Spec, and a module
            of no library, say nothing of it: then 224 x 224 pixels and ImageNet's statistics are taken.
        size: image size (H, W) in place of that of ``pixels``.
        name: your word for it, repeated in every output.
        weights: where the weights come from, in words; ``"random"`` for a model that was never trained.
        read: the model's own output and the image size (H, W) -> :class:`~backsight.core.Classes`, or
            :class:`~backsight.core.Detections` for each image, where the spec's ``prediction`` does not do.

    Raises:
        UserError: a mistake in the spec, a path that names no submodule, a pattern that does not fit what is there,
            pictures to be padded for a model that takes no mask; or, without a spec, nothing that looks like a stage.
    """
    if spec is not None:
        return stage_by_spec(module, spec, pixels=pixels, size=size, name=name, weights=weights, read=read)
    module = settled(unwrapped(module))
    family, known = _known(module, size)
    if pixels is not None:
        known = replace(pixels, size=size or pixels.size)
    name = name or type(module).__name__
    if family is None:
        staged = stage_automatically(module, known, name=name, weights=weights)
    else:
        staged = stage_module(module, family, known, name=name, weights=weights)
    staged.read = read or staged.read
    staged.reopen["given"] = True  # no name opens it again
    return staged


def _known(module: Any, size: tuple[int, int] | None) -> tuple[Family | None, Pixels]:
    """The family of a module, if one describes it, and what its library says of its images."""
    kind = getattr(getattr(module, "config", None), "model_type", None)
    if kind is not None:
        family = family_of("transformers", kind)
        default = transformers_models.own_size(module) or (family.size if family else (224, 224))
        return family, transformers_models.pixels(module, {}, size, default)
    if type(module).__module__.startswith("timm."):
        return family_of("timm", type(module).__name__), timm_models.pixels(module, size)
    return None, Pixels(size or (224, 224))

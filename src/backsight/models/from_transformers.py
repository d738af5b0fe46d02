"""Loading Hugging Face's models: from a configuration, from a folder, with the weights of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from backsight.core import Pixels, UserError
from backsight.models.original_detr import from_original, is_original
from backsight.models.weights import fill, mismatch, read_config, read_state, weights_in

_RESAMPLE: dict[int, Any] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers for interpolation, which preprocessor_config.json uses."""


def build(kind: str, configure: Mapping[str, Any], file: Path | None = None) -> nn.Module:
    """A model of ``model_type`` ``kind``, configured by keyword arguments; weights from ``file``, or random.

    A checkpoint of DETR's own authors is read too.

    Raises:
        UserError: the file holds no weights, or those of another model.
    """
    from transformers import AutoConfig

    auto, options = _auto_class(kind, configure.get("architectures"))
    module = auto.from_config(AutoConfig.for_model(kind, **configure), **options)
    if file is not None:
        state = read_state(file)
        state = from_original(state, file) if is_original(state) else state
        fill(module, state, str(file))
    return module


def load(folder: Path) -> nn.Module:
    """The model saved in ``folder``.

    Raises:
        UserError: the weights are missing or broken, or do not fit the configuration beside them.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    raw = read_config(folder)
    read_state(weights_in(folder))  # the library would report a broken file by a traceback of its own
    # Kept beside `backbone`, these make the library ask the hub for weights that the folder already holds.
    raw.pop("backbone_kwargs", None)
    raw |= {"use_pretrained_backbone": False} if "backbone" in raw else {}
    config = AutoConfig.for_model(**raw)
    auto, options = _auto_class(config.model_type, raw.get("architectures"))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        module, info = auto.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    finally:
        logging.set_verbosity(verbosity)
    missing = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    if missing:
        raise mismatch(str(folder), sorted(missing), sorted(info["unexpected_keys"]))
    return module.float()


def _auto_class(kind: str, architectures: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
    """The class that loads what is saved as ``architectures`` (a detector where nothing is said), and its options.

    A bare ViT may be saved without the pooler that its class has; drawn anew, that would be another model every time.
    """
    from transformers import AutoModel, AutoModelForImageClassification, AutoModelForObjectDetection

    saved = " ".join(architectures or ["Detection"])
    if "Detection" in saved:
        return AutoModelForObjectDetection, {}
    if "ImageClassification" in saved:
        return AutoModelForImageClassification, {}
    return AutoModel, {"add_pooling_layer": False} if kind == "vit" else {}


def preprocessor(folder: Path) -> Mapping[str, Any]:
    """What ``preprocessor_config.json`` of a model's folder says of images; nothing where there is none."""
    path = folder / "preprocessor_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def own_size(module: Any) -> tuple[int, int] | None:
    """(H, W) of the images that the model's position embedding is made for, whole patches; None where it has none."""
    own, patch = getattr(module.config, "image_size", None), getattr(module.config, "patch_size", 1)
    if not own:
        return None
    sides, patches = ((each, each) if isinstance(each, int) else each for each in (own, patch))
    height, width = (side // by * by for side, by in zip(sides, patches, strict=True))
    return height, width


def pixels(module: Any, said: Mapping[str, Any], size: tuple[int, int] | None, default: tuple[int, int]) -> Pixels:
    """What a ``preprocessor_config.json`` has ``said`` of the images of ``module``.

    With a ``crop_size`` the shorter side is resized and the centre cut out; else both sides are stretched to the size,
    as the paper does. One that keeps the aspect (``shortest_edge``) names no fixed size: then ``default`` holds. One
    that does not normalise leaves values in [0, 1].

    Raises:
        UserError: patches do not tile images of ``size``.
    """
    named, crop = said.get("size"), said.get("crop_size") if said.get("do_center_crop", True) else None
    if isinstance(named, dict) and {"height", "width"} <= named.keys():
        default = (named["height"], named["width"])
    standard = Pixels(size or default)
    if crop:
        crop = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
        shorter = named.get("shortest_edge", min(crop)) if isinstance(named, dict) else named or min(crop)
        standard = replace(standard, size=size or crop, fit="crop", crop_fraction=min(crop) / shorter)
    _check_patches(module.config, standard.size)
    normalised = said.get("do_normalize", True)
    return replace(
        standard,
        mean=tuple(said.get("image_mean", standard.mean)) if normalised else (0.0, 0.0, 0.0),
        std=tuple(said.get("image_std", standard.std)) if normalised else (1.0, 1.0, 1.0),
        interpolation=_RESAMPLE.get(said.get("resample", 2), "bilinear"),
    )


def _check_patches(config: Any, size: tuple[int, int]) -> None:
    """The library would leave out what lies beyond the last whole patch; inverses have to paint it."""
    patch = getattr(config, "patch_size", None)
    sides = (patch, patch) if isinstance(patch, int) else patch or (1, 1)
    if any(side % by for side, by in zip(size, sides, strict=True)):
        raise UserError(
            f"a {config.model_type} cannot take images of {size[0]}x{size[1]} pixels: its patches are "
            f"{sides[0]}x{sides[1]}, give multiples of these"
        )

"""Loading Hugging Face's models: from a configuration, from a folder, with the weights of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from backsight.core import Pixels
from backsight.models.weights import mismatch, read_config, read_state, weights_in

_RESAMPLE: dict[int, Any] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers for interpolation, which preprocessor_config.json uses."""


def build(kind: str, configure: Mapping[str, Any], file: Path | None = None) -> nn.Module:
    """A model of ``model_type`` ``kind``, configured by keyword arguments; weights from ``file``, or random."""
    from transformers import AutoConfig

    module = _class_for(AutoConfig.for_model(kind, **configure))
    if file is not None:
        state, own = read_state(file), module.state_dict()
        if any(name in own and own[name].shape != value.shape for name, value in state.items()):
            raise mismatch(str(file), [], [])
        differing = module.load_state_dict(state, strict=False)
        if differing.missing_keys or differing.unexpected_keys:
            raise mismatch(str(file), differing.missing_keys, differing.unexpected_keys)
    return module


def load(folder: Path) -> nn.Module:
    """The model saved in ``folder``.

    Raises:
        UserError: the weights are missing or broken, or do not fit the configuration beside them.
    """
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForObjectDetection
    from transformers.utils import logging

    logging.disable_progress_bar()
    raw = read_config(folder)
    read_state(weights_in(folder))  # the library would report a broken file by a traceback of its own
    # Kept beside `backbone`, these make the library ask the hub for weights that the folder already holds.
    raw.pop("backbone_kwargs", None)
    raw |= {"use_pretrained_backbone": False} if "backbone" in raw else {}
    config = AutoConfig.for_model(**raw)
    detects = any("Detection" in name for name in raw.get("architectures") or ["Detection"])
    auto = AutoModelForObjectDetection if detects else AutoModelForImageClassification
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        module, info = auto.from_pretrained(
            folder, config=config, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    finally:
        logging.set_verbosity(verbosity)
    missing = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    if missing:
        raise mismatch(str(folder), sorted(missing), sorted(info["unexpected_keys"]))
    return module.float()


def _class_for(config: Any) -> nn.Module:
    from transformers import AutoModelForObjectDetection

    return AutoModelForObjectDetection.from_config(config)


def pixels(folder: Path | None, size: tuple[int, int] | None, default: tuple[int, int]) -> Pixels:
    """What ``preprocessor_config.json`` says of images; both sides are stretched to ``size``, as the paper does.

    A configuration that keeps the aspect (``shortest_edge``) names no fixed size: then ``default`` holds.
    """
    path = None if folder is None else folder / "preprocessor_config.json"
    raw = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
    named = raw.get("size")
    if isinstance(named, dict) and {"height", "width"} <= named.keys():
        default = (named["height"], named["width"])
    standard = Pixels(size or default)
    return replace(
        standard,
        mean=tuple(raw.get("image_mean", standard.mean)),
        std=tuple(raw.get("image_std", standard.std)),
        interpolation=_RESAMPLE.get(raw.get("resample", 2), "bilinear"),
    )

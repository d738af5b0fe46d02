"""Loading timm's models: by architecture, from a folder, with the weights of a file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backsight.core import Fit, Pixels, UserError
from backsight.models.weights import mismatch, read_state, weights_in

logger = logging.getLogger(__name__)

_FITS: dict[str, Fit] = {"squash": "stretch", "center": "crop"}
"""timm's modes of cropping -> ours. It has one more, ``border``, which pads on all four sides: no model takes a mask of
that."""


def build(
    architecture: str,
    *,
    folder: Path | None = None,
    file: Path | None = None,
    random: bool = False,
    size: tuple[int, int] | None = None,
) -> nn.Module:
    """The model of timm's ``architecture``, configured as in a ``folder`` if there is one.

    Its weights are those of ``file``, else those in the ``folder`` unless they are to be ``random``, else random.

    Raises:
        UserError: the weights are of another model, or the model cannot take images of ``size``.
    """
    import timm

    if folder is not None and not timm.is_model(architecture.partition(".")[0]):
        raise UserError(f"{folder} holds a '{architecture}', which timm {timm.__version__} does not know: upgrade timm")
    options: dict[str, Any] = {} if size is None or _takes_any_size(architecture) else {"img_size": size}
    if file is not None:
        read_state(file)  # timm would report a broken file by a traceback of its own
        # A file holds what timm itself saves, also where the published weights are of another format ("custom_load").
        overlay = {"file": str(file), "source": "", "custom_load": False}
        options |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
    elif folder is not None and not random:
        read_state(weights_in(folder))
        options |= {"pretrained": True}
    try:
        module = timm.create_model(architecture if folder is None else f"local-dir:{folder}", **options)
    except RuntimeError as error:
        if size is not None and "greater than 0" in str(error):  # of the resampled position embedding
            told = f"{architecture} cannot take images of {size[0]}x{size[1]} pixels: they are smaller than its patches"
            raise UserError(f"{told}, give multiples of these") from error
        if "state_dict" not in str(error):
            raise
        raise mismatch(str(file or folder), *_differing(str(error))) from error
    except (AssertionError, TypeError, ValueError) as error:
        if size is None:
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"{architecture} cannot take images of {size[0]}x{size[1]} pixels: {reason}") from error
    return _checked(module, architecture, size)


def _takes_any_size(architecture: str) -> bool:
    """Whether nothing in the model is made for one image size, as in convolutional networks."""
    import timm

    with torch.device("meta"):
        return not hasattr(timm.create_model(architecture), "set_input_size")


def _checked(module: nn.Module, architecture: str, size: tuple[int, int] | None) -> nn.Module:
    """The module itself; timm would notice only at the first image that patches do not tile it."""
    embedding: Any = getattr(module, "patch_embed", None)
    patch = getattr(embedding, "patch_size", (1, 1))
    pads = getattr(embedding, "dynamic_img_pad", False)
    if size is not None and not pads and any(side % by for side, by in zip(size, patch, strict=True)):
        raise UserError(
            f"{architecture} cannot take images of {size[0]}x{size[1]} pixels: its patches are {patch[0]}x{patch[1]}, "
            "give multiples of these"
        )
    return module


def _differing(message: str) -> tuple[list[str], list[str]]:
    """The names that torch's own message lists as missing and as unexpected."""
    found: dict[str, list[str]] = {"Missing": [], "Unexpected": []}
    for line in message.splitlines():
        for kind, names in found.items():
            if line.strip().startswith(kind):
                names.extend(part.strip(' ".') for part in line.split(":", 1)[1].split(","))
    return found["Missing"], found["Unexpected"]


def pixels(module: nn.Module, size: tuple[int, int] | None) -> Pixels:
    """What timm's own data configuration of the model says of its images."""
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(module)
    embedding: Any = getattr(module, "patch_embed", None)
    own = tuple(getattr(embedding, "img_size", None) or config["input_size"][1:])
    return Pixels(
        size=size or own,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        fit=_fit(config["crop_mode"]),
        crop_fraction=config["crop_pct"],
    )


def _fit(mode: str) -> Fit:
    if mode not in _FITS:
        logger.info("timm pads pictures for this model (crop mode '%s'): here the centre is cut out instead", mode)
    return _FITS.get(mode, "crop")

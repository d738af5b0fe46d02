"""Loading timm's models: by architecture, from a folder, with the weights of a file."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from backsight.core import Fit, Pixels, UserError, of_rgb
from backsight.models.checkpoints import Differing, classes_in, differing_in, fitting, mismatch, read_state
from backsight.models.inputs import expect_tiled
from backsight.models.weights import refused, weights_in
from backsight.validation import first_line

logger: logging.Logger = logging.getLogger(__name__)

_FITS: dict[str, Fit] = {"squash": "stretch", "center": "crop"}
"""timm's modes of cropping -> ours. It has one more, ``border``, which pads on all four sides: no model takes a mask of
that."""


_SHAPES = re.compile(r"size mismatch for (\S+): .*?Size\(\[([\d, ]*)\]\) from checkpoint, .*?Size\(\[([\d, ]*)\]\)")


def build(
    architecture: str,
    *,
    folder: Path | None = None,
    file: Path | None = None,
    random: bool = False,
    size: tuple[int, int] | None = None,
) -> nn.Module:
    """The model of timm's ``architecture``, configured as in a ``folder`` if there is one.

    Its weights are those of ``file``, else those in the ``folder`` unless they are to be ``random``, else random. A
    ``file`` tells how many classes the model has: none where it holds no head.

    Raises:
        UserError: the weights are of another model, or the model cannot take images of ``size``.
    """
    import timm

    if folder is not None and not timm.is_model(architecture.partition(".")[0]):
        raise UserError(f"{folder} holds a '{architecture}', which timm {timm.__version__} does not know: upgrade timm")
    name = architecture if folder is None else f"local-dir:{folder}"
    source = file or (None if folder is None or random else weights_in(folder))
    state: Mapping[str, Tensor] = {}
    blank = blueprint(name, folder)
    # Without the method nothing in the model is made for one image size, as in convolutional networks.
    options: dict[str, Any] = {} if size is None or not hasattr(blank, "set_input_size") else {"img_size": size}
    if source is not None:
        state = fitting(read_state(source), blank.state_dict())
        classes = _classes(state, blank, source) if file is not None else blank.num_classes
        # What timm itself saves, also where the published weights are of another format ("custom_load").
        overlay: dict[str, Any] = {
            "state_dict": dict(state),
            "source": "",
            "custom_load": False,
            "num_classes": classes,
        }
        if not differing_in(state, blank.state_dict()):
            overlay["first_conv"] = None  # which older versions of timm take for one of three channels, and drop
        options |= {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": classes}
    try:
        with nullcontext() if source is None else _Unfilled():
            module: Any = timm.create_model(name, **options)
    except (AttributeError, KeyError, RuntimeError) as error:
        if size is not None and "greater than 0" in str(error):  # of the resampled position embedding
            told = f"{architecture} cannot take images of {size[0]}x{size[1]} pixels: they are smaller than its patches"
            raise UserError(f"{told}, give multiples of these") from error
        if source is None or (isinstance(error, RuntimeError) and "state_dict" not in str(error)):
            raise
        raise mismatch(str(source if file else folder), *_differing(error, state, blank.state_dict())) from error
    except (AssertionError, TypeError, ValueError) as error:
        if size is None:
            raise
        said = f"{architecture} cannot take images of {size[0]}x{size[1]} pixels: {first_line(error)}"
        raise UserError(said) from error
    module.pretrained_cfg.pop("state_dict", None)
    module.pretrained_cfg["first_conv"] = blank.pretrained_cfg.get("first_conv")
    return _checked(module, architecture, size)


def blueprint(name: str, folder: Path | None = None) -> Any:
    """The model of that ``name`` without memory for its weights; ``folder`` is where its configuration is, if in one.

    Raises:
        UserError: the configuration is no such model's.
    """
    import timm

    try:
        with torch.device("meta"), _Unfilled():
            return timm.create_model(name)
    except Exception as error:  # every architecture checks its own arguments, or none
        if folder is None:
            raise
        raise refused(folder, "timm", error) from error


class _Unfilled(TorchFunctionMode):
    """Without the random values of parameters, which those of a file replace: half of the time that loading takes."""

    _KEPT = ("__", "requires_grad_", "copy_")  # the last is how weights are loaded

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        filled = args[0] if args else (kwargs or {}).get("tensor")
        name = func.__name__
        if isinstance(filled, nn.Parameter) and name.endswith("_") and not name.endswith(self._KEPT):
            return filled
        return func(*args, **(kwargs or {}))


def _classes(state: Mapping[str, Tensor], blank: Any, source: Path) -> int:
    """How many classes the weights tell apart; ``blank`` is the model that they are meant for."""
    own, heads = blank.state_dict(), blank.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    missing = own.keys() - state.keys()
    if missing and len(missing) < len(own) / 2 and all(name.rpartition(".")[0] in heads for name in missing):
        logger.info("%s has no head: the model gives features alone", source)
        return 0
    differing = [each for each in differing_in(state, own) if each[0].rpartition(".")[0] in heads]
    classes = classes_in(differing, blank.num_classes)
    if classes:
        logger.info("%s tells %d classes apart: its head has them all, and no names for them", source, classes)
    return classes or blank.num_classes


def of_wrapper(wrapper: Any, size: tuple[int, int] | None) -> nn.Module:
    """The model of timm within a ``timm_wrapper`` of transformers, with what its configuration says of it."""
    module, config = wrapper.timm_model, wrapper.config
    module.pretrained_cfg = {**module.pretrained_cfg, **(getattr(config, "pretrained_cfg", None) or {})}
    if getattr(module, "num_classes", 0):
        module.pretrained_cfg["label_names"] = [config.id2label[index] for index in range(config.num_labels)]
    if size is not None and hasattr(module, "set_input_size"):
        module.set_input_size(img_size=size)
    return _checked(module, config.architecture, size)


def _checked(module: nn.Module, architecture: str, size: tuple[int, int] | None) -> nn.Module:
    """The module itself; timm would notice only at the first image that patches do not tile it."""
    embedding: Any = getattr(module, "patch_embed", None)
    patch = getattr(embedding, "patch_size", (1, 1))
    pads = getattr(embedding, "dynamic_img_pad", False)
    if size is not None and not pads:
        expect_tiled(architecture, size, patch)
    return module


def _differing(
    error: Exception, state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[Sequence[str], Sequence[str], Sequence[Differing]]:
    """The names that torch's own message lists as missing, as unexpected, and as of another shape; all those that
    differ where timm failed before, in what it makes of names that it does not know."""
    if not isinstance(error, RuntimeError):
        return sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys()), []
    message = str(error)
    found: dict[str, list[str]] = {"Missing": [], "Unexpected": []}
    for line in message.splitlines():
        for kind, names in found.items():
            if line.strip().startswith(kind):
                names.extend(part.strip(' ".') for part in line.split(":", 1)[1].split(","))
    shapes = [(name, _sides(theirs), _sides(own)) for name, theirs, own in _SHAPES.findall(message)]
    return found["Missing"], found["Unexpected"], shapes


def _sides(shape: str) -> list[int]:
    return [int(side) for side in shape.split(",") if side]


def pixels(module: nn.Module, size: tuple[int, int] | None) -> Pixels:
    """What timm's own data configuration of the model says of its images."""
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(module)
    embedding: Any = getattr(module, "patch_embed", None)
    own = tuple(getattr(embedding, "img_size", None) or config["input_size"][1:])
    first = next((each for each in module.modules() if isinstance(each, nn.Conv2d)), None)
    channels = first.in_channels if first is not None and first.in_channels in (1, 4) else 3
    return Pixels(
        size=size or own,
        mean=of_rgb(config["mean"]),
        std=of_rgb(config["std"]),
        interpolation=config["interpolation"],
        fit=_fit(config["crop_mode"]),
        crop_fraction=config["crop_pct"],
        channels=channels,
    )


def _fit(mode: str) -> Fit:
    if mode not in _FITS:
        logger.info("timm pads pictures for this model (crop mode '%s'): here the centre is cut out instead", mode)
    return _FITS.get(mode, "crop")

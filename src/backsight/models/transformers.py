"""Loading Hugging Face's models: from a configuration, from a folder, with the weights of a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backsight.core import Pixels, UserError
from backsight.models.original_detr import from_original, is_original
from backsight.models.weights import fill, mismatch, read_config, read_json, read_state, weights_in

_RESAMPLE: dict[int, Any] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers for interpolation, which preprocessor_config.json uses."""


def build(kind: str, configure: Mapping[str, Any], file: Path | None = None) -> nn.Module:
    """A model of ``model_type`` ``kind``, configured by keyword arguments; weights from ``file``, or random.

    A checkpoint of DETR's own authors is read too.

    Raises:
        UserError: the file holds no weights, or those of another model.
    """
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind, **configure)
    auto, options = _auto_class(config, configure.get("architectures"))
    module = _built(auto, config, options)
    return module if file is None else _filled(module, file, options)


def load(folder: Path, file: Path | None = None, *, random: bool = False) -> nn.Module:
    """The model saved in ``folder``, with the weights of ``file`` or ``random`` ones in place of its own.

    Raises:
        UserError: the weights are missing or broken, or do not fit the configuration.
    """
    from transformers import AutoConfig

    raw = read_config(folder)
    # The library would report a broken file by a traceback of its own.
    state = {} if random and file is None else read_state(file or weights_in(folder))
    # Kept beside `backbone`, these make the library ask the hub for weights that the folder already holds.
    raw.pop("backbone_kwargs", None)
    raw |= {"use_pretrained_backbone": False} if "backbone" in raw else {}
    try:
        config = AutoConfig.for_model(**raw)
    except Exception as error:  # every type checks its own values, and their errors are of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder / 'config.json'} is refused by transformers ({reason}): mend it there") from error
    config.mask_ratio = 0.0  # ViT-MAE's, which would leave out three quarters of the tokens
    auto, options = _auto_class(config, raw.get("architectures"), state)
    if random or file is not None:
        module = _built(auto, config, options).float()
        return module if file is None else _filled(module, file, options)
    with _quiet():
        module, info = auto.from_pretrained(folder, config=config, local_files_only=True, **_REPORTING, **options)
    missing, unexpected = _differing(info)
    if missing:
        raise mismatch(str(folder), missing, unexpected)
    return module.float()


def _built(auto: Any, config: Any, options: Mapping[str, Any]) -> Any:
    config.mask_ratio = 0.0  # ViT-MAE's, which would leave out three quarters of the tokens
    return auto.from_config(config, **options) if hasattr(auto, "from_config") else auto(config, **options)


def _filled(module: Any, file: Path, options: Mapping[str, Any]) -> nn.Module:
    """The module with the weights of ``file``, whose tensors are named as in the module, in files that the library
    saves (where it keeps the names of older versions), or by DETR's own authors."""
    state = read_state(file)
    state = from_original(state, file) if is_original(state) else state
    if state.keys() == module.state_dict().keys():
        fill(module, state, str(file))
        return module
    with _quiet():
        filled, info = type(module).from_pretrained(
            None, config=module.config, state_dict=state, **_REPORTING, **options
        )
    missing, unexpected = _differing(info)
    others = [name for name in unexpected if not ("add_pooling_layer" in options and name.startswith("pooler."))]
    if missing or others:
        raise mismatch(str(file), missing, others)
    return filled.float()


_REPORTING: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Options by which the library tells what does not fit, in place of an error of its own."""


def _differing(info: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The tensors that the library found missing, or of another shape, and those that it did not expect."""
    missing = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    return sorted(missing), sorted(info["unexpected_keys"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own reports of what it loads."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _auto_class(
    config: Any, architectures: Sequence[str] | None, tensors: Iterable[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """The class that loads what is saved as ``architectures``, and its options.

    Where nothing is said, it is a detector if the type has one, else a classifier if its ``tensors`` include the head's
    or are not known. A bare ViT may be saved without the pooler that its class has; drawn anew, that would be another
    model every time.
    """
    import transformers
    from transformers import (
        MODEL_FOR_OBJECT_DETECTION_MAPPING,
        MODEL_MAPPING,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForObjectDetection,
    )

    names = list(tensors)
    headed = not names or any(name.startswith("classifier.") for name in names)
    default = "Detection" if type(config) in MODEL_FOR_OBJECT_DETECTION_MAPPING else "ImageClassification" * headed
    saved = " ".join(architectures or [default])
    if "Detection" in saved:
        return AutoModelForObjectDetection, {}
    if "ImageClassification" in saved:
        return AutoModelForImageClassification, {}
    own = getattr(transformers, saved, None)
    if type(config) not in MODEL_MAPPING and isinstance(own, type) and issubclass(own, transformers.PreTrainedModel):
        return own, {}  # a depth estimator, say, has no bare model
    return AutoModel, {"add_pooling_layer": False} if config.model_type == "vit" else {}


def preprocessor(folder: Path) -> Mapping[str, Any]:
    """What ``preprocessor_config.json`` of a model's folder says of images; nothing where there is none.

    Raises:
        UserError: the file is broken.
    """
    path = folder / "preprocessor_config.json"
    return read_json(path) if path.is_file() else {}


def own_size(module: Any) -> tuple[int, int] | None:
    """(H, W) of the images that the model's position embedding is made for, whole patches; None where it has none."""
    config = vision_config(module)
    own, patch = getattr(config, "image_size", None), getattr(config, "patch_size", 1)
    if not own or not isinstance(patch, int | list | tuple):
        return None
    sides, patches = ((each, each) if isinstance(each, int) else each for each in (own, patch))
    height, width = (side // by * by for side, by in zip(sides, patches, strict=True))
    return height, width


def vision_config(module: Any) -> Any:
    """The configuration of what reads images, also where a text model has one beside."""
    return getattr(module.config, "vision_config", module.config)


def more_arguments(module: Any, size: tuple[int, int]) -> dict[str, Any]:
    """What a forward of transformers over images of ``size`` needs beside these, so that it gives the same every time:
    an empty text for a model that reads one too; tokens in their own order for ViT-MAE."""
    config: Any = getattr(module, "config", None)
    if getattr(config, "model_type", "") == "vit_mae":
        return {"noise": torch.arange(size[0] // config.patch_size * (size[1] // config.patch_size))[None]}
    text = getattr(config, "text_config", None)
    if text is None or not hasattr(module, "text_model"):
        return {}
    ends = [getattr(text, f"{end}_token_id", None) or 0 for end in ("bos", "eos")]
    return {"input_ids": torch.tensor([ends]).clamp(max=text.vocab_size - 1)}  # SigLIP's default is beyond its words


def pixels(module: Any, said: Mapping[str, Any], size: tuple[int, int] | None, default: tuple[int, int]) -> Pixels:
    """What a ``preprocessor_config.json`` has ``said`` of the images of ``module``.

    With a ``crop_size`` the shorter side is resized and the centre cut out; else both sides are stretched to the size,
    as the paper does. One that keeps the aspect (``shortest_edge``) names no fixed size: then ``default`` holds. One
    that does not normalise leaves values in [0, 1].

    Raises:
        UserError: what it has said cannot be read, or patches do not tile images of ``size``.
    """
    try:
        found = _read(said, size, default)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"the model's preprocessor_config.json cannot be read ({reason}): mend its sizes, or remove it"
        ) from error
    _check_patches(vision_config(module), found.size)
    return found


def _read(said: Mapping[str, Any], size: tuple[int, int] | None, default: tuple[int, int]) -> Pixels:
    named, crop = said.get("size"), said.get("crop_size") if said.get("do_center_crop", True) else None
    if isinstance(named, dict) and {"height", "width"} <= named.keys():
        default = (named["height"], named["width"])
    standard = Pixels(size or default)
    if crop:
        crop = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
        shorter = named.get("shortest_edge", min(crop)) if isinstance(named, dict) else named or min(crop)
        standard = replace(standard, size=size or crop, fit="crop", crop_fraction=min(crop) / shorter)
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
    if len(sides) == 2 and any(side % by for side, by in zip(size, sides, strict=True)):
        raise UserError(
            f"a {config.model_type} cannot take images of {size[0]}x{size[1]} pixels: its patches are "
            f"{sides[0]}x{sides[1]}, give multiples of these"
        )

"""Loading Hugging Face's models: from a configuration, from a folder, with the weights of a file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backsight.core import Pixels, UserError, of_rgb
from backsight.models.checkpoints import beyond, classes_in, mismatch, read_state, variants
from backsight.models.inputs import expect_tiled, settled
from backsight.models.originals import from_original
from backsight.models.weights import read_config, read_json, refused, weights_in

logger: logging.Logger = logging.getLogger(__name__)

_RESAMPLE: dict[int, Any] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers for interpolation, which preprocessor_config.json uses."""


def build(kind: str, configure: Mapping[str, Any], file: Path | None = None) -> nn.Module:
    """A model of ``model_type`` ``kind``, configured by keyword arguments; weights from ``file``, or random.

    Checkpoints of the models' own authors are read too, see :mod:`backsight.models.originals`.

    Raises:
        UserError: the file holds no weights, or those of another model.
    """
    from transformers import AutoConfig

    kept = class_of(AutoConfig.for_model(kind, **configure), configure.get("architectures"))
    return _built(*kept) if file is None else _filled(*kept, read_state(file), file, strict=True)


def load(folder: Path, file: Path | None = None, *, random: bool = False, described: bool = True) -> nn.Module:
    """The model saved in ``folder``, with the weights of ``file`` or ``random`` ones in place of its own.

    Of a type that no family has ``described`` it is the class that was saved, whatever it is for.

    Raises:
        UserError: the weights are missing or broken, or do not fit the configuration.
    """
    from transformers import CONFIG_MAPPING

    raw = read_config(folder)
    # The library would report a broken file by a traceback of its own.
    state = {} if random and file is None else read_state(file or weights_in(folder))
    # Kept beside `backbone`, these make the library ask the hub for weights that the folder already holds.
    raw.pop("backbone_kwargs", None)
    raw |= {"use_pretrained_backbone": False} if "backbone" in raw else {}
    try:
        config = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
        kept = class_of(config, raw.get("architectures"), state, described=described)
        with torch.device("meta"):
            _built(*kept)
    except Exception as error:  # every type checks its own values, and their errors are of many kinds
        raise refused(folder, "transformers", error) from error
    module = _filled(*kept, state, file or folder, strict=file is not None) if state else _built(*kept)
    return settled(module.float())


def _built(auto: Any, config: Any, options: Mapping[str, Any]) -> Any:
    return auto.from_config(config, **options) if hasattr(auto, "from_config") else auto(config, **options)


def _filled(
    auto: Any, config: Any, options: Mapping[str, Any], state: Mapping[str, Tensor], what: Path, *, strict: bool
) -> nn.Module:
    """The model with the tensors of ``state``, which came from ``what``. They are named as in the module, as in files
    that the library saves (where it keeps the names of older versions), or by the model's own authors.

    ``strict`` is for files that somebody names: their tensors are all of this model, and tell how many classes it has.
    A folder may hold heads that the model is taken without, but no more layers than it has.
    """
    state = from_original(state, config.model_type, what)
    module, info = fill_class(auto, config, options, state, strict=strict)
    classes = classes_in(info["mismatched_keys"], config.num_labels) if strict else None
    if classes:
        logger.info("%s tells %d classes apart: its head has them all, and no names for them", what, classes)
        config.num_labels = classes
        module, info = fill_class(auto, config, options, state, strict=strict)
    others = [name for name in info["unexpected_keys"] if not ("add_pooling_layer" in options and "pooler." in name)]
    if not strict:
        others = beyond(others, module.state_dict())
    missing, differing = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    if missing or others or differing:
        raise mismatch(str(what), missing, sorted(others), differing)
    return module.float()


def fill_class(
    auto: Any, config: Any, options: Mapping[str, Any], state: Mapping[str, Tensor], *, strict: bool = False
) -> tuple[Any, Mapping[str, Any]]:
    """The model filled by the variant of ``state`` that fits best, and what differs; ``strict`` where none may be left
    over."""
    with torch.device("meta"):
        kind: Any = type(_built(auto, config, options))
    found: list[tuple[int, int, Any, Mapping[str, Any]]] = []
    for each in variants(state):
        # The library tells what does not fit, in place of an error of its own.
        reporting = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        with _quiet():
            module, info = kind.from_pretrained(None, config=config, state_dict=dict(each), **reporting, **options)
        found.append((len(info["missing_keys"]), len(info["unexpected_keys"]) if strict else 0, module, info))
        if not any(found[-1][:2]):
            break
    return min(found, key=lambda each: each[:2])[2:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own reports of what it loads."""
    from transformers.utils import logging as reports

    reports.disable_progress_bar()
    verbosity = reports.get_verbosity()
    reports.set_verbosity_error()
    try:
        yield
    finally:
        reports.set_verbosity(verbosity)


_PRETEXT = ("ForPreTraining", "ForMaskedImageModeling")
"""What a model is for that is trained on its own images, and taken without the head for that."""


def class_of(
    config: Any, architectures: Sequence[str] | None, tensors: Iterable[str] = (), *, described: bool = True
) -> tuple[Any, Any, dict[str, Any]]:
    """The class that loads what is saved as ``architectures``, its configuration, and its options.

    Where nothing is said, it is a detector if the type has one, else a classifier if its ``tensors`` include the head's
    or are not known. A bare ViT may be saved without the pooler that its class has; drawn anew, that would be another
    model every time. Of the SAM family, whose masks need prompts, it is what reads images.
    """
    import transformers
    from transformers import (
        MODEL_FOR_OBJECT_DETECTION_MAPPING,
        MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING,
        MODEL_MAPPING,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForObjectDetection,
        AutoModelForZeroShotObjectDetection,
    )

    names = list(tensors)
    headed = not names or any(name.startswith("classifier.") for name in names)
    texts = type(config) in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING
    detects = texts or type(config) in MODEL_FOR_OBJECT_DETECTION_MAPPING
    default = "Detection" if detects else "ImageClassification" * headed
    saved = " ".join(architectures or [default])
    reader = getattr(transformers, type(config).__name__.replace("Config", "VisionModel"), None)
    if config.model_type.startswith(("sam", "edgetam")) and reader is not None:
        return reader, config.vision_config, {}
    own = getattr(transformers, saved, None)
    own = own if isinstance(own, type) and issubclass(own, transformers.PreTrainedModel) else None
    bare = type(config) in MODEL_MAPPING
    if own is not None and not (bare and (described or saved.endswith(_PRETEXT))):
        return own, config, {}
    if "Detection" in saved:
        return AutoModelForZeroShotObjectDetection if texts else AutoModelForObjectDetection, config, {}
    if "ImageClassification" in saved:
        return AutoModelForImageClassification, config, {}
    return AutoModel, config, {"add_pooling_layer": False} if config.model_type == "vit" else {}


def preprocessor(folder: Path) -> Mapping[str, Any]:
    """What ``preprocessor_config.json`` of a model's folder says of images, or ``processor_config.json`` of one that
    reads texts too; nothing where there is none.

    Raises:
        UserError: the file is broken.
    """
    path, other = folder / "preprocessor_config.json", folder / "processor_config.json"
    if path.is_file() or not other.is_file():
        return read_json(path) if path.is_file() else {}
    said = read_json(other).get("image_processor")
    return said if isinstance(said, dict) else {}


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


def pixels(module: Any, said: Mapping[str, Any], size: tuple[int, int] | None, default: tuple[int, int]) -> Pixels:
    """What a ``preprocessor_config.json`` has ``said`` of the images of ``module``.

    With a ``crop_size`` the shorter side is resized and the centre cut out; else both sides are stretched to the size,
    as the paper does. One that keeps the aspect (``shortest_edge``) names no fixed size: then ``default`` holds. One
    that does not normalise leaves values in [0, 1].

    Raises:
        UserError: what it has said cannot be read, or patches do not tile images of ``size``.
    """
    config = vision_config(module)
    channels = getattr(config, "num_channels", 3)
    if channels not in (1, 3, 4):
        raise UserError(f"the model takes {channels} channels: pictures have 3, and make 1 or 4 at most")
    try:
        found = _read(said, size, default, channels)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"the model's preprocessor_config.json cannot be read ({reason}): mend its sizes, or remove it"
        ) from error
    _check_patches(config, found.size)
    return found


def _read(said: Mapping[str, Any], size: tuple[int, int] | None, default: tuple[int, int], channels: Any) -> Pixels:
    named, crop = said.get("size"), said.get("crop_size") if said.get("do_center_crop", True) else None
    if isinstance(named, dict) and {"height", "width"} <= named.keys():
        default = (named["height"], named["width"])
    standard = Pixels(size or default, channels=channels)
    if crop:
        crop = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
        shorter = named.get("shortest_edge", min(crop)) if isinstance(named, dict) else named or min(crop)
        standard = replace(standard, size=size or crop, fit="crop", crop_fraction=min(crop) / shorter)
    normalised = said.get("do_normalize", True)
    return replace(
        standard,
        mean=of_rgb(said.get("image_mean", standard.mean)) if normalised else (0.0, 0.0, 0.0),
        std=of_rgb(said.get("image_std", standard.std)) if normalised else (1.0, 1.0, 1.0),
        interpolation=_RESAMPLE.get(said.get("resample", 2), "bilinear"),
    )


def _check_patches(config: Any, size: tuple[int, int]) -> None:
    """The library would leave out what lies beyond the last whole patch; inverses have to paint it."""
    patch = getattr(config, "patch_size", None)
    sides = (patch, patch) if isinstance(patch, int) else patch or (1, 1)
    if len(sides) == 2:
        expect_tiled(f"a {config.model_type}", size, sides)

"""What a file of weights holds: the model's tensors among all else that a training leaves. Nothing here unpickles."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor, nn

from backsight.core import UserError
from backsight.io import read_tensors
from backsight.models.weights import shards_of
from backsight.validation import first_line

logger: logging.Logger = logging.getLogger(__name__)

WRAPPERS: tuple[str, ...] = ("model", "state_dict", "model_state_dict", "module")
"""What trainings keep a model's tensors under, beside the optimiser's and their own."""

AVERAGES: tuple[str, ...] = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema")
"""What they keep the moving averages of the weights (EMA) under."""

ADDED: tuple[str, ...] = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

OUTER: tuple[str, ...] = ("model.", "net.", "network.", "backbone.")
"""What a module that holds the model often puts before its names: a LightningModule, DINO's student and teacher."""

FOREIGN: tuple[tuple[str, str], ...] = (
    (
        r"^(conv_proj|encoder\.layers\.encoder_layer_\d+|features\.\d+)\.",
        "torchvision names tensors so, build its own model of them and stage that: bs.stage(module)",
    ),
    (
        r"^(bbox_head|decode_head|neck)\.",
        "mmdetection names tensors so, build its own model of them in a file my_module.py and stage that by --spec",
    ),
    (
        r"^(backbone\.0\.body|blocks\.\d+\.attn\.qkv)\.",
        "the model's authors name tensors so, make a folder of them by the script convert_*.py that transformers' "
        "repository has beside the model",
    ),
)
"""Patterns of names that other libraries use, and what makes a model of such tensors."""

_INERT: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    multiarray.scalar,  # type: ignore[attr-defined]
    multiarray._reconstruct,  # type: ignore[attr-defined]
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"),
]
"""Types of options and measurements that trainings keep beside the tensors; to build them runs no code of a file."""


def split_part(weights: str | Path) -> tuple[Path, str]:
    """``FILE:ema`` -> (``FILE``, ``ema``); the part is empty where none is named."""
    file, _, part = str(weights).rpartition(":")
    named = bool(file) and not Path(weights).exists() and Path(file).is_file()
    return (Path(file), part) if named else (Path(weights), "")


def read_state(weights: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, of a ``.pth``, ``.pt`` or ``.bin`` file read with ``weights_only``, or of
    the shards that an ``.index.json`` names.

    A training checkpoint is unwrapped, see :data:`WRAPPERS`; ``FILE:ema`` takes the moving averages in place of the
    weights, ``FILE:NAME`` what it holds under another name. :data:`ADDED` prefixes are dropped.

    Raises:
        UserError: the file is missing, is no file of weights, has no such part, or holds more than can be read.
    """
    path, part = split_part(weights)
    content = read_content(path)
    state = _model_in(_part(content, part, path) if part else content)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        averages = [name for name in AVERAGES if isinstance(content, dict) and name in content]
        if averages and not part:
            raise UserError(f"{path} holds moving averages alone, under '{averages[0]}': name them, as {path}:ema")
        raise UserError(f"{path} holds no state_dict: give a .safetensors file or a file of named tensors")
    if not part and isinstance(content, dict) and any(name in content for name in AVERAGES):
        logger.info("%s holds moving averages too: %s:ema takes these in place of the weights", path, path)
    return _without_added({str(name): value for name, value in state.items()})


def _part(content: Any, part: str, path: Path) -> Any:
    names = AVERAGES if part == "ema" else (part,)
    if isinstance(content, dict):
        for name in names:
            if name in content:
                return content[name]
            if below := _below(f"{name}.", content):
                return below
    held = ", ".join(map(str, content)) if isinstance(content, dict) and len(content) < 20 else "named tensors alone"
    raise UserError(f"{path} has no '{part}' in it: it holds {held}")


def _model_in(content: Any) -> Any:
    """The tensors by name within ``content``, out of what trainings wrap them in."""
    while isinstance(content, dict) and not all(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if inner is None:
            return content
        content = inner
    return content


def _without_added(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while any(all(name.startswith(prefix) for name in state) for prefix in ADDED):
        state = {name.partition(".")[2]: value for name, value in state.items()}
    return {name.replace("._orig_mod.", "."): value for name, value in state.items()}


def variants(state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """``state``, then what of it stands under each of :data:`OUTER`: a model within a larger one."""
    yield state
    for prefix in OUTER:
        if below := _below(prefix, state):
            yield _without_added(below)


def _below(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def read_content(path: Path) -> Any:
    """All that a file of weights holds: tensors in dictionaries and lists, whatever their order. Runs no code of it.

    Raises:
        UserError: the file is missing, is no file of weights, or holds more than tensors, numbers and options.
    """
    if not path.is_file():
        raise UserError(f"no file of weights at {path}")
    if path.name.endswith(".index.json"):
        return {name: tensor for shard in shards_of(path) for name, tensor in read_content(shard).items()}
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)
        with torch.serialization.safe_globals(_INERT):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":
            found = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
            what = f": {found[1]}" if found else ""
            reason = f"it holds more than tensors, and code from a file is never run{what}"
        else:
            reason = first_line(error)[:120]
        raise UserError(
            f"{path} cannot be read as weights ({reason}): give a .safetensors file or a state_dict"
        ) from error


# ---- into a model


Differing = tuple[str, Sequence[int], Sequence[int]]
"""The name of a tensor, its shape in the file, its shape in the model."""


def fitting(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The variant of ``state`` that has the most of a module's ``own`` tensors."""
    return max(variants(state), key=lambda each: len(own.keys() & each.keys()))


def fill(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Put the tensors of ``state``, which came from ``what``, into ``module``.

    Raises:
        UserError: they are of another model.
    """
    own = module.state_dict()
    state = fitting(state, own)
    differing = differing_in(state, own)
    if differing:
        raise mismatch(what, [], [], differing)
    found = module.load_state_dict(state, strict=False)
    if found.missing_keys or found.unexpected_keys:
        raise mismatch(what, found.missing_keys, found.unexpected_keys)


def differing_in(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[Differing]:
    """The tensors that both have, in other shapes."""
    return [(name, value.shape, own[name].shape) for name, value in state.items()
            if name in own and own[name].shape != value.shape]  # fmt: skip


def beyond(names: Iterable[str], own: Mapping[str, Tensor]) -> list[str]:
    """Those of ``names`` that count on where the rows of a module's ``own`` layers end."""
    found = []
    for name in names:
        words = name.split(".")
        rows = [".".join(words[:index]) for index, word in enumerate(words) if word.isdigit()]
        for row in rows:
            numbers = {each.removeprefix(f"{row}.").partition(".")[0] for each in own if each.startswith(f"{row}.")}
            if numbers and name.removeprefix(f"{row}.").partition(".")[0] not in numbers:
                found.append(name)
                break
    return found


def classes_in(differing: Sequence[Differing], classes: int) -> int | None:
    """How many classes the weights tell apart, where all that differs from a model of ``classes`` is the length of its
    head's tensors (which may have one more, for "no object"); else None."""
    found = {
        length[0] - own[0] + classes
        for _, length, own in differing
        if len(length) == len(own) > 0 and length[1:] == own[1:] and own[0] in (classes, classes + 1)
    }
    heads = [each for each in differing if each[2] and each[2][0] in (classes, classes + 1)]
    return found.pop() if len(found) == 1 and len(heads) == len(differing) else None


def mismatch(
    what: str, missing: Sequence[str], unexpected: Sequence[str], differing: Sequence[Differing] = ()
) -> UserError:
    """One line for weights that are not of this model, with the first names that differ, and what may read them."""
    parts = [f"{len(names)} tensors are {how} (first: {names[0]})" for how, names in
             (("missing", missing), ("not of this model", unexpected)) if names]  # fmt: skip
    if differing:
        name, theirs, own = differing[0]
        more = f", and {len(differing) - 1} more differ" if len(differing) > 1 else ""
        parts.insert(0, f"{name} is {_shape(theirs)} there and {_shape(own)} in the model{more}")
    hint = next((f"; {hint}" for names, hint in FOREIGN if any(re.search(names, name) for name in unexpected)), "")
    return UserError(f"the weights in {what} are of another model: {', '.join(parts)}{hint}")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"

"""Between a library's own arrangement of a representation and ours, ``B N D``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn


def to_features(values: Sequence[Any], patterns: Sequence[str]) -> Tensor:
    """The values of a stage's sites -> ``B N D``: pyramids joined along N, several sites along D."""
    joined = []
    for value, pattern in zip(values, patterns, strict=True):
        levels = [_flatten(each, pattern) for each in _maps(value)]
        joined.append(torch.cat(levels, 1) if len(levels) > 1 else levels[0])
    return torch.cat(joined, -1) if len(joined) > 1 else joined[0]


def from_features(features: Tensor, like: Sequence[Any], patterns: Sequence[str]) -> list[Any]:
    """The inverse of :func:`to_features`, in the arrangement of ``like``."""
    widths = [_flatten(_maps(value)[0], pattern).shape[-1] for value, pattern in zip(like, patterns, strict=True)]
    parts = features.split(widths, -1)
    return [_unflatten(part, value, pattern) for part, value, pattern in zip(parts, like, patterns, strict=True)]


def _maps(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _flatten(value: Tensor, pattern: str) -> Tensor:
    return value if pattern == "b n d" else rearrange(value, f"{pattern} -> b (h w) d")


def _unflatten(features: Tensor, like: Any, pattern: str) -> Any:
    if pattern == "b n d":
        return _in_memory_as(like, features)
    maps = _maps(like)
    sizes = [_grid(each, pattern) for each in maps]
    parts = features.split([h * w for h, w in sizes], 1)
    native = [rearrange(part, f"b (h w) d -> {pattern}", h=h, w=w) for part, (h, w) in zip(parts, sizes, strict=True)]
    native = list(map(_in_memory_as, maps, native))
    return type(like)(native) if isinstance(like, list | tuple) else native[0]


def _in_memory_as(like: Tensor, value: Tensor) -> Tensor:
    """``value`` with the strides of ``like``: over others, a library's sums may run in another order and round anew."""
    same = value.stride() == like.stride()
    return value if same else torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)


def _grid(value: Tensor, pattern: str) -> tuple[int, int]:
    axes = pattern.split()
    return value.shape[axes.index("h")], value.shape[axes.index("w")]


def infer_grids(raw: Any, pattern: str, tokens: int, size: tuple[int, int], levels: int) -> tuple[tuple[int, int], ...]:
    """The (h, w) of every level of a representation: read off a map, else found from the number of tokens.

    A library's grid is the image divided by a stride, rounded up (convolutions with padding) or down (patches), and
    every further level of a pyramid halves it. Empty when no stride gives ``tokens``.
    """
    if pattern != "b n d":
        return tuple(_grid(each, pattern) for each in _maps(raw))
    for stride in range(1, max(size) + 1):
        for divide in (lambda side, by: -(-side // by), lambda side, by: side // by):
            grids = [(divide(size[0], stride * 2**i), divide(size[1], stride * 2**i)) for i in range(levels)]
            if sum(h * w for h, w in grids) == tokens:
                return tuple(grids)
    return ()


def clone(value: Any) -> Any:
    """A copy that later in-place edits of a library cannot reach: tensors cloned, containers rebuilt."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        copied = copy.copy(value)
        for key, item in value.items():
            copied[key] = clone(item)
        return copied
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(clone, value))
    return type(value)(map(clone, value)) if isinstance(value, list | tuple) else value


def read_field(output: Any, name: int | str | None) -> Any:
    """The field ``name`` of a module's output, the output itself for None."""
    return output if name is None else output[name]


def write_field(output: Any, name: int | str | None, value: Any) -> Any:
    """A module's output with the field ``name`` replaced; the original stays as it is."""
    if name is None:
        return value
    if isinstance(output, dict):
        copied = copy.copy(output)
        copied[name] = value
        return copied
    items = list(output)
    items[int(name)] = value
    return type(output)(items)


def pick_argument(
    module: nn.Module, args: tuple, kwargs: dict[str, Any], name: int | str | None
) -> tuple[Any, Callable[[Any], tuple[tuple, dict[str, Any]]]]:
    """The argument ``name`` of a call of ``module``, by keyword or position, and a function that replaces it."""
    parameters = list(inspect.signature(type(module).forward).parameters)[1:]
    position = parameters.index(name) if isinstance(name, str) and name in parameters else name
    key = name if isinstance(name, str) else parameters[name or 0]
    if key in kwargs:
        return kwargs[key], lambda value: (args, {**kwargs, key: value})
    index = int(position or 0)
    return args[index], lambda value: ((*args[:index], value, *args[index + 1 :]), kwargs)

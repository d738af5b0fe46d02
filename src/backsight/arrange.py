"""Between a library's own arrangement of a representation and ours, ``B N D``."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from backsight.core import Site

Size = tuple[int, int]
"""(H, W) of the images, in pixels."""


def to_features(values: Sequence[Any], sites: Sequence[Site], size: Size) -> Tensor:
    """The values at a stage's ``sites`` -> ``B N D``: pyramids are joined along N, several sites of one module along D,
    those of several modules along N."""
    flat = [_rows(value, site, size) for value, site in zip(values, sites, strict=True)]
    return _joined([_joined(group, -1) for group in _by_module(flat, sites)], 1)


def from_features(features: Tensor, like: Sequence[Any], sites: Sequence[Site], size: Size) -> list[Any]:
    """The inverse of :func:`to_features`, in the arrangement of ``like``, whose other tokens stay as they are."""
    shapes = [_rows(value, site, size).shape for value, site in zip(like, sites, strict=True)]
    groups = _by_module(shapes, sites)
    rows = features.split([group[0][1] for group in groups], 1)
    parts = [
        part for row, group in zip(rows, groups, strict=True) for part in row.split([shape[2] for shape in group], -1)
    ]
    return [_unflatten(part, value, site, size) for part, value, site in zip(parts, like, sites, strict=True)]


def levels_of(values: Sequence[Any], sites: Sequence[Site]) -> list[Tensor]:
    """The maps that :func:`to_features` joins along N, in order."""
    return [each for group in _by_module(values, sites) for each in _maps(group[0])]


def _by_module(items: Sequence[Any], sites: Sequence[Site]) -> list[list[Any]]:
    """``items``, one for each of ``sites``, in a list for each module (and side of it)."""
    runs = itertools.groupby(zip(items, sites, strict=True), lambda pair: (pair[1].path, pair[1].side))
    return [[item for item, _ in run] for _, run in runs]


def _maps(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)


def _rows(value: Any, site: Site, size: Size) -> Tensor:
    """What stands at one site -> ``B N D``."""
    return _joined([_flatten(each, site, size) for each in _maps(value)], 1)


def _flatten(value: Tensor, site: Site, size: Size) -> Tensor:
    if site.pattern != "b n d":
        return rearrange(value, f"{site.pattern} -> b (h w) d")
    if site.tokens:
        value = torch.cat([value[:, start:stop] for start, stop in site.tokens], 1)
    return _join(value, site.windows, size) if site.windows > 1 else value


def _unflatten(features: Tensor, like: Any, site: Site, size: Size) -> Any:
    if site.pattern == "b n d":
        native = _cut(features, site.windows, size) if site.windows > 1 else features
        return _in_memory_as(like, _among(like, native, site.tokens) if site.tokens else native)
    maps = _maps(like)
    sizes = [_grid(each, site.pattern) for each in maps]
    parts = features.split([h * w for h, w in sizes], 1)
    pattern = f"b (h w) d -> {site.pattern}"
    native = [rearrange(part, pattern, h=h, w=w) for part, (h, w) in zip(parts, sizes, strict=True)]
    native = list(map(_in_memory_as, maps, native))
    return type(like)(native) if isinstance(like, list | tuple) else native[0]


def _join(windows: Tensor, count: int, size: Size) -> Tensor:
    """Windows, a row of the batch each, -> ``B N D``, the whole grid row by row."""
    h, w = _in_proportion(windows.shape[1], size)
    return rearrange(windows, "(b p q) (h w) d -> b (p h q w) d", p=count, q=count, h=h, w=w)


def _cut(features: Tensor, count: int, size: Size) -> Tensor:
    """The inverse of :func:`_join`."""
    h, w = _in_proportion(features.shape[1] // count**2, size)
    return rearrange(features, "b (p h q w) d -> (b p q) (h w) d", p=count, q=count, h=h, w=w)


def _in_proportion(tokens: int, size: Size) -> tuple[int, int]:
    """The grid (h, w) of ``tokens`` that has the proportions of the image."""
    h = round(math.sqrt(tokens * size[0] / size[1]))
    return h, tokens // h


def _among(like: Tensor, features: Tensor, parts: Sequence[tuple[int | None, int | None]]) -> Tensor:
    """A copy of ``like``, ``B N' D``, with the ``parts`` of its tokens replaced by ``features``, ``B N D``."""
    native = like.to(features.dtype, copy=True)
    places = torch.cat([torch.arange(like.shape[1])[start:stop] for start, stop in parts])
    native[:, places.to(like.device)] = features
    return native


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
    every further level of a pyramid halves it; the first stride of a pyramid is most likely a power of two. Empty when
    no stride gives ``tokens``.
    """
    if pattern != "b n d":
        return tuple(_grid(each, pattern) for each in _maps(raw))
    for stride in sorted(range(1, max(size) + 1), key=lambda stride: levels > 1 and stride.bit_count() > 1):
        for divide in (lambda side, by: -(-side // by), lambda side, by: side // by):
            grids = [(divide(size[0], stride * 2**i), divide(size[1], stride * 2**i)) for i in range(levels)]
            if sum(h * w for h, w in grids) == tokens:
                return tuple(grids)
    return ()


def clone(value: Any) -> Any:
    """A copy that later in-place edits of a library cannot reach: tensors cloned, containers rebuilt."""
    return each_tensor(value, Tensor.clone)


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor in it changed, its containers rebuilt."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        copied = copy.copy(value)
        for key, item in value.items():
            copied[key] = each_tensor(item, change)
        return copied
    if not isinstance(value, list | tuple):
        return value
    items = [each_tensor(item, change) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


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

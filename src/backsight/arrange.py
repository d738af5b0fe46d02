"""Between a library's own arrangement of a representation and ours, ``B N D``."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from backsight.core import Site

Size = tuple[int, int]
"""(H, W) of the images, in pixels."""

HALF = (torch.float16, torch.bfloat16)
"""Half precisions: what is put in at a site of such a precision is cast to it."""


def to_features(values: Sequence[Any], sites: Sequence[Site], size: Size) -> Tensor:
    """The values at a stage's ``sites`` -> ``B N D``: pyramids are joined along N, several sites of one call along D,
    those of several calls along N."""
    flat = [_rows(value, site, size) for value, site in zip(values, sites, strict=True)]
    return _joined([_joined(group, -1) for group in _by_module(flat, sites)], 1)


def from_features(features: Tensor, like: Sequence[Any], sites: Sequence[Site], size: Size) -> list[Any]:
    """The inverse of :func:`to_features`, in the arrangement of ``like``, whose other tokens stay as they are."""
    shapes = [_rows(value, site, size).shape for value, site in zip(like, sites, strict=True)]
    groups = _by_module(shapes, sites)
    rows = features.split([group[0][1] for group in groups], 1)
    widths = [[shape[2] for shape in group] for group in groups]
    parts = [part for row, each in zip(rows, widths, strict=True) for part in row[..., : sum(each)].split(each, -1)]
    return [_unflatten(part, value, site, size) for part, value, site in zip(parts, like, sites, strict=True)]


def levels_of(values: Sequence[Any], sites: Sequence[Site]) -> list[Tensor]:
    """The maps that :func:`to_features` joins along N, in order."""
    return [each for group in _by_module(values, sites) for each in _maps(group[0])]


def _by_module(items: Sequence[Any], sites: Sequence[Site]) -> list[list[Any]]:
    """``items``, one for each of ``sites``, in a list for each call of a module (and side of it)."""
    runs = itertools.groupby(zip(items, sites, strict=True), lambda pair: (pair[1].path, pair[1].side, pair[1].call))
    return [[item for item, _ in run] for _, run in runs]


def _maps(value: Any) -> list[Tensor]:
    """The levels of what stands at a site: those of a list, a tuple or a dictionary, else the one tensor."""
    return list(value.values()) if isinstance(value, Mapping) else list(value) if _is_row(value) else [value]


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_record(value: Any) -> bool:
    """An instance of a dataclass; those of transformers are dictionaries too, and count as these."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping)


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Along N, narrower parts are filled up with zeros to the width of the widest."""
    if len(parts) == 1:
        return parts[0]
    if axis == 1:
        width = max(part.shape[2] for part in parts)
        parts = [functional.pad(part, (0, width - part.shape[2])) for part in parts]
    return torch.cat(list(parts), axis)


def _rows(value: Any, site: Site, size: Size) -> Tensor:
    """What stands at one site -> ``B N D``."""
    return _joined([_flatten(each, site, size) for each in _maps(value)], 1)


def _flatten(value: Tensor, site: Site, size: Size) -> Tensor:
    if site.pattern == "b d":
        return value[:, None]
    if site.pattern != "b n d":
        return rearrange(value, f"{site.pattern} -> b (h w) d")
    if site.tokens:
        value = torch.cat([value[:, start:stop] for start, stop in site.tokens], 1)
    return _join(value, site.windows, size) if site.windows > 1 else value


def _unflatten(features: Tensor, like: Any, site: Site, size: Size) -> Any:
    shapes = [_flatten(each, site, size).shape for each in _maps(like)]
    parts = zip(features.split([tokens for _, tokens, _ in shapes], 1), shapes, strict=True)
    levels = [part[..., :width] for part, (_, _, width) in parts]
    native = [_arranged(part, each, site, size) for part, each in zip(levels, _maps(like), strict=True)]
    if isinstance(like, Mapping):
        return _with_items(like, dict(zip(like, native, strict=True)))
    return type(like)(native) if _is_row(like) else native[0]


def _arranged(features: Tensor, like: Tensor, site: Site, size: Size) -> Tensor:
    """``features``, ``B N D``, in the arrangement, the precision and the memory order of ``like``."""
    features = features.to(like.dtype) if like.dtype in HALF else features
    if site.pattern == "b d":
        return _in_memory_as(like, features[:, 0])
    if site.pattern != "b n d":
        h, w = _grid(like, site.pattern)
        return _in_memory_as(like, rearrange(features, f"b (h w) d -> {site.pattern}", h=h, w=w))
    native = _cut(features, site.windows, size) if site.windows > 1 else features
    return _in_memory_as(like, _among(like, native, site.tokens) if site.tokens else native)


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
    if "h" in pattern:
        return tuple(_grid(each, pattern) for each in _maps(raw))
    for stride in sorted(range(1, max(size) + 1), key=lambda stride: levels > 1 and stride.bit_count() > 1):
        for divide in (lambda side, by: -(-side // by), lambda side, by: side // by):
            grids = [(divide(size[0], stride * 2**i), divide(size[1], stride * 2**i)) for i in range(levels)]
            if sum(h * w for h, w in grids) == tokens:
                return tuple(grids)
    return ()


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in ``value``, in order."""
    found: list[Tensor] = []
    each_tensor(value, lambda tensor: found.append(tensor) or tensor)
    return found


def clone(value: Any) -> Any:
    """A copy that later in-place edits of a library cannot reach: tensors cloned, containers rebuilt."""
    return each_tensor(value, Tensor.clone)


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor in it changed, its containers rebuilt."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return _with_items(value, {key: each_tensor(item, change) for key, item in value.items()})
    if _is_record(value):
        return _with_attributes(value, {name: each_tensor(item, change) for name, item in vars(value).items()})
    if not _is_row(value):
        return value
    items = [each_tensor(item, change) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _with_items(mapping: Any, items: Mapping[Any, Any]) -> Any:
    copied = copy.copy(mapping)
    for key, item in items.items():
        copied[key] = item
    return copied


def _with_attributes(record: Any, values: Mapping[str, Any]) -> Any:
    copied = copy.copy(record)
    for name, value in values.items():
        object.__setattr__(copied, name, value)  # of a frozen one, too
    return copied


def fields_of(output: Any) -> list[int | str]:
    """The names of the fields of a module's output: keys, positions, or the attributes of a dataclass."""
    if isinstance(output, Mapping):
        return list(output)
    if _is_row(output):
        return list(range(len(output)))
    return list(vars(output)) if _is_record(output) else []


def read_field(output: Any, name: int | str | None) -> Any:
    """The field ``name`` of a module's output, the output itself for None; ``head.logits`` is a field of a field.

    Raises:
        KeyError, IndexError or TypeError: there is none.
    """
    if name is None:
        return output
    if isinstance(output, Mapping) and name in output:
        return output[name]
    first, _, rest = str(name).partition(".")
    if _is_record(output):
        value = vars(output)[first]
    else:
        value = output[int(first) if first.isdigit() and _is_row(output) else first]
    return read_field(value, rest or None)


def write_field(output: Any, name: int | str | None, value: Any) -> Any:
    """A module's output with the field ``name`` replaced; the original stays as it is."""
    if name is None:
        return value
    if not (isinstance(output, Mapping) and name in output):
        first, _, rest = str(name).partition(".")
        name = int(first) if _is_row(output) else first
        value = write_field(read_field(output, name), rest or None, value) if rest else value
    if isinstance(output, Mapping):
        return _with_items(output, {name: value})
    if not _is_row(output):
        return _with_attributes(output, {str(name): value})
    items = list(output)
    items[int(name)] = value
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def pick_argument(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: int | str | None
) -> tuple[Any, Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The argument ``name`` of a call of ``module``, by keyword or position, and a function that replaces it."""
    parameters = list(inspect.signature(type(module).forward).parameters)[1:]
    position = parameters.index(name) if isinstance(name, str) and name in parameters else name
    key = name if isinstance(name, str) else parameters[name or 0]
    if key in kwargs:
        return kwargs[key], lambda value: (args, {**kwargs, key: value})
    index = int(position or 0)
    return args[index], lambda value: ((*args[:index], value, *args[index + 1 :]), kwargs)


def call_with(pixels: Tensor, arguments: Mapping[str, Any], name: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a module is called: its images, first or by the keyword ``name``, and its other ``arguments``."""

    def expanded(value: Tensor) -> Tensor:
        single = value.dim() > 0 and len(value) == 1
        return value.expand(len(pixels), *value.shape[1:]) if single else value

    others = {key: each_tensor(value, expanded) for key, value in arguments.items()}
    return ((pixels,), others) if name is None else ((), {name: pixels, **others})


def image_argument_of(module: nn.Module) -> str | None:
    """``pixel_values`` for a model of transformers that takes something else first."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return "pixel_values" if "pixel_values" in names[1:] else None

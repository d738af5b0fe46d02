"""Finding, in a module of which nothing is known, the places that may be stages: repeated blocks, tokens and maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from backsight.core import Site
from backsight.models.own import fitting_patterns
from backsight.models.survey import BATCH, Survey

MOST_PREFIX = 16
"""More tokens before the grid than this are taken for something else."""


@dataclass(frozen=True)
class Place:
    """A representation: its site, the axes ``tokens`` and ``width``, its ``grid`` (h, w; None for none), its prefix."""

    site: Site
    tokens: int
    width: int
    grid: tuple[int, int] | None
    prefix: int = 0


@dataclass(frozen=True)
class Found:
    """A possible stage: its ``place``, and the path of its repeated blocks (empty for none) with their number."""

    place: Place
    blocks: str = ""
    depth: int = 0


def find_stages(module: nn.Module, seen: Sequence[Survey]) -> list[Found]:
    """Every row of repeated blocks, and what enters it where that is something new; without any row, every resolution.

    ``seen`` are surveys at one or more image sizes: what grows with the image is a grid, what does not is none.
    """
    rows = list(find_rows(module, seen[0]))
    found: list[Found] = []
    for row in rows:
        entry = _entry(f"{row}.{_names(module.get_submodule(row))[0]}", seen)
        if entry is not None and _is_new(entry, found[-1:], seen[0].size):
            found.append(Found(entry))
        found += _stages_of(module, row, seen)
    return found if rows else _resolutions(module, seen)


def _is_new(entry: Place, before: Sequence[Found], size: tuple[int, int]) -> bool:
    """Whether what enters a row is neither the image nor what the row before gave."""
    known = [(each.place.tokens, each.place.width) for each in before] + [(size[0] * size[1], 3)]
    return entry.grid is not None and (entry.tokens, entry.width) not in known


def find_rows(module: nn.Module, seen: Survey, path: str = "") -> Iterator[str]:
    """The outermost containers below ``path`` whose children are of one class and read what the one before gave."""
    own = module.get_submodule(path)
    children = [f"{path}.{name}".lstrip(".") for name in _names(own)]
    if isinstance(own, nn.ModuleList | nn.Sequential) and _is_row(module, children, seen):
        yield path
        return
    for child in children:
        yield from find_rows(module, seen, child)


def _is_row(module: nn.Module, children: Sequence[str], seen: Survey) -> bool:
    blocks = [module.get_submodule(child) for child in children]
    if len(blocks) < 2 or len({type(block) for block in blocks}) > 1 or not any(blocks[0].children()):
        return False
    if any(len(seen.visits.get(child, ())) != 1 for child in children):
        return False
    visits = [seen.visits[child][0] for child in children]
    given = [_first((*visit.args, *visit.kwargs.values()))[1] for visit in visits]
    answered = [_first(visit.output)[1] for visit in visits]
    return all(
        before is not None and after is not None and before.shape == after.shape and before.dim() > 2
        for before, after in zip(answered, given[1:], strict=False)
    ) and [visit.order for visit in visits] == sorted(visit.order for visit in visits)


def _stages_of(module: nn.Module, row: str, seen: Sequence[Survey]) -> list[Found]:
    """One stage for blocks that keep the shape; one for every block where they change it."""
    children = [f"{row}.{name}" for name in _names(module.get_submodule(row))]
    places = [_exit(child, seen) for child in children]
    if any(place is None for place in places):
        return []
    shapes = {(place.tokens, place.width) for place in places if place}
    if len(shapes) == 1:
        return [Found(place, row, len(children)) for place in places[-1:] if place]
    return [_with_inner(module, child, place, seen) for child, place in zip(children, places, strict=True) if place]


def _with_inner(module: nn.Module, child: str, place: Place, seen: Sequence[Survey]) -> Found:
    for row in find_rows(module, seen[0], child):
        names = _names(module.get_submodule(row))
        last = _exit(f"{row}.{names[-1]}", seen)
        if last is not None and (last.tokens, last.width) == (place.tokens, place.width):
            return Found(place, row, len(names))
    return Found(place)


def _resolutions(module: nn.Module, seen: Sequence[Survey]) -> list[Found]:
    """The last child of the module at every shape that stands on a grid."""
    by_shape: dict[tuple[int, int], Found] = {}
    for name in sorted(filter(seen[0].visits.get, _names(module)), key=lambda name: seen[0].visits[name][0].order):
        place = _exit(name, seen)
        if place is not None and place.grid is not None and max(place.grid) > 1:
            by_shape[place.tokens, place.width] = Found(place)
    return list(by_shape.values())


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]


# ---- from shapes to places


def _entry(path: str, seen: Sequence[Survey]) -> Place | None:
    visits = [each.visits[path][0] for each in seen]
    keyword = not any(isinstance(value, Tensor) for value in visits[0].args)
    values = [_first(visit.kwargs if keyword else visit.args) for visit in visits]
    field = values[0][0]
    return _place(Site(path, "input", field or None), [value for _, value in values], seen)


def _exit(path: str, seen: Sequence[Survey]) -> Place | None:
    values = [_first(each.visits[path][0].output) for each in seen if path in each.visits]
    return _place(Site(path, "output", values[0][0]), [value for _, value in values], seen)


def _first(value: Any) -> tuple[int | str | None, Tensor | None]:
    """The first tensor with tokens in ``value``, and the field that it is in."""
    if isinstance(value, Tensor):
        return None, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next(((key, item) for key, item in items if isinstance(item, Tensor) and item.dim() > 2), (None, None))


def _place(site: Site, values: Sequence[Tensor | None], seen: Sequence[Survey]) -> Place | None:
    shapes = [tuple(value.shape) for value in values if value is not None and value.shape[0] == BATCH]
    if len(shapes) < len(values) or {len(shape) for shape in shapes} not in ({3}, {4}):
        return None
    sizes = [each.size for each in seen]
    patterns = [fitting_patterns(shape, size) for shape, size in zip(shapes, sizes, strict=True)]
    pattern = next((each for each in patterns[0] if all(each in other for other in patterns)), None)
    if pattern is None:
        return None
    site = replace(site, pattern=pattern)
    if pattern == "b n d":
        grid, prefix = _grid(shapes, sizes)
        return Place(site, shapes[0][1], shapes[0][2], grid, prefix)
    h, w, width = (shapes[0][pattern.split().index(axis)] for axis in "hwd")
    return Place(site, h * w, width, (h, w))


def _grid(shapes: Sequence[tuple[int, ...]], sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int] | None, int]:
    """(grid of the first size, prefix) of tokens: the stride at which every size leaves over the same few tokens."""
    options = []
    for stride in range(1, max(sizes[0]) + 1):
        for up in (0, stride - 1):
            grids = [((height + up) // stride, (width + up) // stride) for height, width in sizes]
            left = {shape[1] - h * w for shape, (h, w) in zip(shapes, grids, strict=True)}
            if len(left) == 1 and 0 <= min(left) <= MOST_PREFIX and min(grids[0]) > 0:
                whole = all(side % stride == 0 for side in sizes[0])
                options.append((not whole, min(left), stride, grids[0]))
    return (min(options)[3], min(options)[1]) if options else (None, 0)

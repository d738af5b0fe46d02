"""Candidate stages of a model of which nothing is known: repeated blocks, and what stands at every resolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from backsight.core import Site, Spec, Stage, UserError
from backsight.models.shape_tracing import BATCH, ShapeTrace, depends_on_image, fitting_patterns

MOST_PREFIX = 16
"""More tokens before the grid than this are taken for something else."""

MOST_STAGES = 8
"""More stages than this are thinned out: those of a resolution that the next one has too are left out first."""

GENERIC = {"layers", "layer", "blocks", "block", "stages", "model", "module", "body", "features"}
"""Words in a path that name no stage."""


@dataclass(frozen=True)
class Place:
    """A representation: its site, the axes ``tokens`` and ``width``, its ``grid`` (h, w; None for none), its prefix."""

    site: Site
    tokens: int
    width: int
    grid: tuple[int, int] | None
    prefix: int = 0

    def stage(self, name: str, *parts: Any) -> Stage:
        """The stage called ``name`` that is here; ``parts`` are its layers and inverses."""
        return Stage(name, (self.site,), *parts, prefix=self.prefix, gridded=self.grid is not None)


@dataclass(frozen=True)
class Found:
    """A possible stage: its ``place``, the path of its repeated blocks (empty for none), and the places of these."""

    place: Place
    blocks: str = ""
    layers: tuple[Place, ...] = ()

    @property
    def depth(self) -> int:
        """The number of its blocks."""
        return len(self.layers)


def spec_of(module: nn.Module, found: Sequence[Found], family: str, task: Any) -> Spec:
    """The stages ``found`` in ``module``, those that no inverse leads from to the one before left out.

    Raises:
        UserError: none is left.
    """
    stages: list[Stage] = []
    for name, each, inverse in invertible(found, module)[0]:
        options = {key: value for key, value in inverse.items() if key != "name"}
        layers = tuple(place.site for place in each.layers)
        stages.append(each.place.stage(name, layers, {"": (inverse["name"], options)}))
    if not stages:
        raise UserError("nothing in the model gives tokens (B N D) or maps (B D h w) that an inverse leads back from")
    return Spec(family, task, tuple(stages))


def invertible(
    found: Sequence[Found], module: nn.Module
) -> tuple[list[tuple[str, Found, dict[str, Any]]], list[Found]]:
    """The name, the place and the inverse of every stage that one leads from to the stage before; and the others."""
    kept: list[tuple[Found, dict[str, Any]]] = []
    others: list[Found] = []
    for each in found:
        inverse = inverse_of(each, kept[-1][0] if kept else None, module)
        if inverse is None:
            others.append(each)
        else:
            kept.append((each, inverse))
    names = names_of([each for each, _ in kept])
    return [(name, *pair) for name, pair in zip(names, kept, strict=True)], others


def find_stages(module: nn.Module, seen: Sequence[ShapeTrace]) -> list[Found]:
    """Every row of repeated blocks, and what enters it where that is something new; without any row, every resolution.
    In the order of the forward pass, at most :data:`MOST_STAGES`.

    ``seen`` are traces of shapes at one or more image sizes: what grows with the image is a grid, other tokens are on
    none.
    """
    firsts = {row: f"{row}.{_children_of(module.get_submodule(row))[0]}" for row in find_rows(module, seen[0])}
    rows = sorted(firsts, key=lambda row: seen[0].visits[firsts[row]][0].order)
    found: list[Found] = []
    for row in rows:
        entry = _entry(firsts[row], seen)
        if entry is not None and _is_new(entry, found[-1:], seen[0].size):
            found.append(Found(entry))
        found += _stages_of(module, row, seen)
    return _thinned(found if rows else _resolutions(module, seen))


def _thinned(found: list[Found]) -> list[Found]:
    found = list(found)
    while len(found) > MOST_STAGES:
        same = (i for i in range(1, len(found) - 1) if found[i].place.grid == found[i + 1].place.grid)
        del found[next(same, 1)]
    return found


def _is_new(entry: Place, before: Sequence[Found], size: tuple[int, int]) -> bool:
    """Whether what enters a row is neither the image nor what the row before gave."""
    known = [(each.place.tokens, each.place.width) for each in before] + [(size[0] * size[1], 3)]
    return entry.grid is not None and max(entry.grid) > 1 and (entry.tokens, entry.width) not in known


def find_rows(module: nn.Module, seen: ShapeTrace, path: str = "") -> Iterator[str]:
    """The outermost containers below ``path`` whose children are of one class and read what the one before gave."""
    own = module.get_submodule(path)
    children = [f"{path}.{name}".lstrip(".") for name in _children_of(own)]
    if isinstance(own, nn.ModuleList | nn.Sequential) and _is_row(module, children, seen):
        yield path
        return
    for child in children:
        yield from find_rows(module, seen, child)


def _is_row(module: nn.Module, children: Sequence[str], seen: ShapeTrace) -> bool:
    blocks = [module.get_submodule(child) for child in children]
    if len(blocks) < 2 or len({type(block) for block in blocks}) > 1 or not any(blocks[0].children()):
        return False
    if any(len(seen.visits.get(child, ())) != 1 for child in children):
        return False
    visits = [seen.visits[child][0] for child in children]
    given = [_first((*visit.args, *visit.kwargs.values()))[1] for visit in visits]
    answered = [_first(visit.output)[1] for visit in visits]
    if not all(each is not None and depends_on_image(each) for each in answered):  # of a text, say
        return False
    return all(
        before is not None and after is not None and before.shape == after.shape and before.dim() > 2
        for before, after in zip(answered, given[1:], strict=False)
    ) and [visit.order for visit in visits] == sorted(visit.order for visit in visits)


def _stages_of(module: nn.Module, row: str, seen: Sequence[ShapeTrace]) -> list[Found]:
    """One stage for blocks that keep the shape; one for every block where they change it."""
    children = [f"{row}.{name}" for name in _children_of(module.get_submodule(row))]
    places = [_exit(child, seen) for child in children]
    if any(place is None for place in places):
        return []
    shapes = {(place.tokens, place.width) for place in places if place}
    if len(shapes) == 1:
        kept = tuple(place for place in places if place)
        return [Found(kept[-1], row, kept)] if kept[-1].grid is None or max(kept[-1].grid) > 1 else []
    return [_with_inner(module, child, place, seen) for child, place in zip(children, places, strict=True) if place]


def _with_inner(module: nn.Module, child: str, place: Place, seen: Sequence[ShapeTrace]) -> Found:
    for row in find_rows(module, seen[0], child):
        if row.count(".") > child.count(".") + 1:  # a row within a block, whose parts are no layers
            continue
        inner = [_exit(f"{row}.{name}", seen) for name in _children_of(module.get_submodule(row))]
        layers = tuple(each for each in inner if each is not None)
        if len(layers) == len(inner) and (layers[-1].tokens, layers[-1].width) == (place.tokens, place.width):
            return Found(place, row, layers)
    return Found(place)


def _resolutions(module: nn.Module, seen: Sequence[ShapeTrace]) -> list[Found]:
    """The last child of the module at every shape that stands on a grid."""
    by_shape: dict[tuple[int, int], Found] = {}
    for name in sorted(
        (name for name in _children_of(module) if len(seen[0].visits.get(name, ())) == 1),
        key=lambda name: seen[0].visits[name][0].order,
    ):
        place = _exit(name, seen)
        if place is not None and place.grid is not None and max(place.grid) > 1:
            by_shape[place.tokens, place.width] = Found(place)
    return list(by_shape.values())


def _children_of(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]


# ---- from shapes to places


def _entry(path: str, seen: Sequence[ShapeTrace]) -> Place | None:
    visits = [each.visits[path][0] for each in seen]
    keyword = not any(isinstance(value, Tensor) for value in visits[0].args)
    values = [_first(visit.kwargs if keyword else visit.args) for visit in visits]
    field = values[0][0]
    return _place(Site(path, "input", field or None), [value for _, value in values], seen)


def _exit(path: str, seen: Sequence[ShapeTrace]) -> Place | None:
    values = [_first(each.visits[path][0].output) for each in seen if path in each.visits]
    site = Site(path, "output", values[0][0]) if values else Site(path)
    return _place(site, [value for _, value in values], seen)


def _first(value: Any) -> tuple[int | str | None, Tensor | None]:
    """The first tensor with tokens in ``value``, and the field that it is in."""
    if isinstance(value, Tensor):
        return None, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next(((key, item) for key, item in items if isinstance(item, Tensor) and item.dim() > 2), (None, None))


def _place(site: Site, values: Sequence[Tensor | None], seen: Sequence[ShapeTrace]) -> Place | None:
    shapes = [tuple(value.shape) for value in values if value is not None and value.shape[0] == BATCH]
    if not shapes or len(shapes) < len(values) or {len(shape) for shape in shapes} not in ({3}, {4}):
        return None
    sizes = [each.size for each in seen]
    patterns = [fitting_patterns(shape, size) for shape, size in zip(shapes, sizes, strict=True)]
    pattern = next((each for each in patterns[0] if all(each in other for other in patterns)), None)
    if pattern is None:
        return None
    site = replace(site, pattern=pattern)
    if pattern == "b n d":
        queries = shapes[0][1] == seen[0].queries
        grid, prefix = (None, 0) if queries else _grid(shapes, sizes)
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


# ---- what an inverse may be, and what a stage is called


def inverse_of(found: Found, before: Found | None, module: nn.Module) -> dict[str, Any] | None:
    """The inverse that goes from here to the stage before, or to the image; None where none is known to."""
    here = found.place
    if here.grid is None:  # a decoder turned round leads from these to tokens on a grid, as wide and without a prefix
        if before is None or not before.place.grid or before.place.prefix or before.place.width != here.width:
            return None
        return {"name": "decoder", "depth": found.depth or 1, "heads": _heads(found, module)}
    if before is None:
        patches = any(isinstance(each, nn.Conv2d) and _is_patch(each) for each in module.modules())
        return {"name": "patch" if patches and here.site.pattern == "b n d" else "residual"}
    there = before.place
    same = (here.tokens, here.width, here.prefix) == (there.tokens, there.width, there.prefix)
    if same and here.site.pattern == there.site.pattern == "b n d":
        return {"name": "blocks", "depth": found.depth or 1, "heads": _heads(found, module)}
    if there.prefix or there.grid is None or any(h > high for h, high in zip(here.grid, there.grid, strict=True)):
        return None
    return {"name": "residual"}


def _is_patch(layer: nn.Conv2d) -> bool:
    kernel = tuple(layer.kernel_size)
    return layer.in_channels in (1, 3, 4) and kernel == tuple(layer.stride) and kernel[0] > 1


def _heads(found: Found, module: nn.Module) -> int:
    """The heads of the blocks' own attention; else those of width 64, or fewer that divide the tokens' width."""
    for each in module.get_submodule(found.blocks).modules() if found.blocks else ():
        heads = getattr(each, "num_heads", getattr(each, "num_attention_heads", None))
        if isinstance(heads, int) and found.place.width % heads == 0:
            return heads
    return next(heads for heads in range(max(1, found.place.width // 64), 0, -1) if found.place.width % heads == 0)


def names_of(found: Sequence[Found]) -> list[str]:
    """``backbone`` for what enters the first blocks, ``tokens`` or ``map`` for what enters later ones; for every other
    stage the last word of its path that says something."""
    names: list[str] = []
    first = {each.place.site.path.partition(".")[0] for each in found}
    generic = GENERIC | (first if len(first) == 1 else set())  # what all stages are in, as `vit`
    for each in found:
        tokens = each.place.site.pattern == "b n d"
        path = each.place.site.path if not each.blocks else each.blocks
        words = [word for word in path.split(".") if not word.isdigit() and word not in generic]
        name = (words or ["encoder" if tokens else "stage"])[-1]
        if each.place.site.side == "input":
            name = "backbone" if not names else "tokens" if tokens else "map"
        names.append(name)
    counts = [names[:index].count(name) for index, name in enumerate(names)]
    return [f"{name}{count + 1}" if names.count(name) > 1 else name for name, count in zip(names, counts, strict=True)]

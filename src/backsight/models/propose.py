"""A spec to begin with, for a model of which nothing is known: what two passes tell, and what they could not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml
from torch import Tensor, nn

from backsight.core import Pixels, Site, UserError
from backsight.models.custom import fitting_patterns
from backsight.models.shape_tracing import BATCH, ShapeTrace, trace_shapes

GENERIC = {"layers", "layer", "blocks", "block", "stages", "model", "module", "body", "features"}
"""Words in a path that name no stage."""


@dataclass(frozen=True)
class Proposal:
    """``text`` is the YAML, with comments; ``unknown`` says in one line each what could not be told."""

    text: str
    unknown: list[str]


def propose(build: Callable[[tuple[int, int]], nn.Module], pixels: Pixels, name: str) -> Proposal:
    """Trace passes over images of ``pixels.size`` and of twice that width, and propose where the stages are.

    Args:
        build: the image size (H, W) -> the model; the same one each time, if it takes any size.
        pixels: the size and statistics of the images.
        name: the user's word for the model, for the comments.

    Raises:
        UserError: the model cannot take images of this size, or nothing in it looks like a stage.
    """
    module = build(pixels.size)
    seen, unknown = [trace_shapes(module, pixels)], []
    try:
        wide = Pixels((pixels.size[0], 2 * pixels.size[1]), pixels.mean, pixels.std)
        seen.append(trace_shapes(build(wide.size), wide))
    except UserError:
        unknown.append(
            "which axes grow with the image: the model takes images of one size only, so look at the patterns"
        )
    unknown.append("what images it was trained on: mean, std, interpolation and fit are ImageNet's and bilinear")
    found = find_stages(module, seen)
    if not found:
        raise UserError(f"nothing in {name} gives tokens (B N D) or maps (B D h w) of {pixels.size}: is that its size?")
    answer = _answer(seen[0], unknown)
    names = _names(found)
    before = [None, *found[:-1]]
    stages = [
        _stage(label, each, last, module, unknown) for label, each, last in zip(names, found, before, strict=True)
    ]
    family = type(module).__name__.lower()
    return Proposal("\n".join([*_head(name, family, seen, pixels), *answer, "", "stages:", *stages]) + "\n", unknown)


def _head(name: str, family: str, seen: list[ShapeTrace], pixels: Pixels) -> list[str]:
    sizes = " and ".join(f"{each.size[0]}x{each.size[1]}" for each in seen)
    return [
        f"# Where the stages of {name} are: a proposal, from what its modules gave for images of {sizes} pixels.",
        "# Read it through, correct it, then let `backsight verify` prove it.",
        f"family: {family}  # your word for it",
        "pixels:",
        f"  size: {list(pixels.size)}  # height, width",
        "  # COULD NOT TELL what images the model was trained on: these are ImageNet's statistics",
        f"  mean: {list(pixels.mean)}",
        f"  std: {list(pixels.std)}",
        f"  interpolation: {pixels.interpolation}  # nearest, bilinear, bicubic or lanczos",
        f"  fit: {pixels.fit}  # or crop: the shorter side to size / crop_fraction, then the centre",
    ]


def _stage(name: str, found: Found, before: Found | None, module: nn.Module, unknown: list[str]) -> str:
    place = found.place
    grid = f"on a grid of {place.grid[0]}x{place.grid[1]}" if place.grid else "on no grid"
    site: dict[str, Any] = {"path": place.site.path}
    site |= {"side": "input"} if place.site.side == "input" else {}
    site |= {} if place.site.field is None else {"field": place.site.field}
    lines = [
        f"  - name: {name}  # {place.tokens} tokens of width {place.width}, {grid}",
        f"    site: {_flow({**site, 'pattern': place.site.pattern})}",
    ]
    if found.blocks:
        field = {} if place.site.field is None else {"field": place.site.field}
        layers = _flow({"path": f"{found.blocks}.*", **field}) if field else f"{found.blocks}.*"
        lines.append(f"    layers: {layers}  # {found.depth} blocks")
    if place.prefix:
        lines.append(f"    prefix: {place.prefix}  # tokens before the grid, such as a class token")
    if place.grid is None:
        lines.append("    gridded: false")
    inverse = _inverse(found, before, module)
    if inverse is None:
        unknown.append(f"an inverse for stage '{name}': add one of those in docs/models.md")
        return "\n".join([*lines, "    # COULD NOT TELL an inverse that goes from here to the stage before it"])
    return "\n".join([*lines, f"    inverse: {_flow(inverse)}"])


def _inverse(found: Found, before: Found | None, module: nn.Module) -> dict[str, Any] | None:
    """The inverse that goes from here to the stage before, or to the image; None where none is known to."""
    here = found.place
    if here.grid is None:
        return None
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
    return layer.in_channels == 3 and tuple(layer.kernel_size) == tuple(layer.stride) and layer.kernel_size[0] > 1


def _heads(found: Found, module: nn.Module) -> int:
    """The heads of the blocks' own attention; else those of width 64, or fewer that divide the tokens' width."""
    for each in module.get_submodule(found.blocks).modules() if found.blocks else ():
        heads = getattr(each, "num_heads", getattr(each, "num_attention_heads", None))
        if isinstance(heads, int) and found.place.width % heads == 0:
            return heads
    return next(heads for heads in range(max(1, found.place.width // 64), 0, -1) if found.place.width % heads == 0)


def _answer(seen: ShapeTrace, unknown: list[str]) -> list[str]:
    """The lines of the task and the prediction."""
    output = seen.output
    fields = output if isinstance(output, Mapping) else {None: output}
    shapes = {name: tuple(value.shape) for name, value in fields.items() if isinstance(value, Tensor)}
    logits = next((name for name in (None, "logits") if name in shapes), None)
    boxes = next((name for name, shape in shapes.items() if "box" in str(name) and shape[-1] == 4), None)
    if logits in shapes and len(shapes[logits]) == 2:
        lines = [f"task: classify  # the output has {shapes[logits][1]} numbers for each image: logits of classes"]
        unknown.append("whether the output's numbers are logits of classes: if not, the task is features")
        return lines + ([] if logits is None else [f"prediction: {logits}"])
    if logits in shapes and boxes is not None and len(shapes[logits]) == 3:
        unknown.append(
            "whether the last class is 'no object' (scores: softmax) or the scores are independent (sigmoid)"
        )
        return ["task: detect", f"prediction: {_flow({'logits': logits, 'boxes': boxes, 'scores': 'softmax'})}"]
    names = ", ".join(map(str, shapes)) or type(output).__name__
    unknown.append(f"which output is the prediction (there is {names}): for now the model is staged for its features")
    return ["task: features  # COULD NOT TELL which output is the prediction: classify, detect or features"]


def _names(found: list[Found]) -> list[str]:
    """``backbone`` for what enters the first blocks, ``tokens`` or ``map`` for what enters later ones; for every other
    stage the last word of its path that says something."""
    names: list[str] = []
    for each in found:
        tokens = each.place.site.pattern == "b n d"
        path = each.place.site.path if not each.blocks else each.blocks
        words = [word for word in path.split(".") if not word.isdigit() and word not in GENERIC]
        name = (words or ["encoder" if tokens else "stage"])[-1]
        if each.place.site.side == "input":
            name = "backbone" if not names else "tokens" if tokens else "map"
        names.append(name)
    counts = [names[:index].count(name) for index, name in enumerate(names)]
    return [f"{name}{count + 1}" if names.count(name) > 1 else name for name, count in zip(names, counts, strict=True)]


def _flow(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), default_flow_style=True, sort_keys=False, width=200).strip()


# ---- candidate sites: repeated blocks, and what stands at every resolution


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


def find_stages(module: nn.Module, seen: Sequence[ShapeTrace]) -> list[Found]:
    """Every row of repeated blocks, and what enters it where that is something new; without any row, every resolution.

    ``seen`` are traces of shapes at one or more image sizes: what grows with
    the image is a grid, what does not is none.
    """
    rows = list(find_rows(module, seen[0]))
    found: list[Found] = []
    for row in rows:
        entry = _entry(f"{row}.{_children_of(module.get_submodule(row))[0]}", seen)
        if entry is not None and _is_new(entry, found[-1:], seen[0].size):
            found.append(Found(entry))
        found += _stages_of(module, row, seen)
    return found if rows else _resolutions(module, seen)


def _is_new(entry: Place, before: Sequence[Found], size: tuple[int, int]) -> bool:
    """Whether what enters a row is neither the image nor what the row before gave."""
    known = [(each.place.tokens, each.place.width) for each in before] + [(size[0] * size[1], 3)]
    return entry.grid is not None and (entry.tokens, entry.width) not in known


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
        return [Found(place, row, len(children)) for place in places[-1:] if place]
    return [_with_inner(module, child, place, seen) for child, place in zip(children, places, strict=True) if place]


def _with_inner(module: nn.Module, child: str, place: Place, seen: Sequence[ShapeTrace]) -> Found:
    for row in find_rows(module, seen[0], child):
        names = _children_of(module.get_submodule(row))
        last = _exit(f"{row}.{names[-1]}", seen)
        if last is not None and (last.tokens, last.width) == (place.tokens, place.width):
            return Found(place, row, len(names))
    return Found(place)


def _resolutions(module: nn.Module, seen: Sequence[ShapeTrace]) -> list[Found]:
    """The last child of the module at every shape that stands on a grid."""
    by_shape: dict[tuple[int, int], Found] = {}
    for name in sorted(
        filter(seen[0].visits.get, _children_of(module)), key=lambda name: seen[0].visits[name][0].order
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
    return _place(Site(path, "output", values[0][0]), [value for _, value in values], seen)


def _first(value: Any) -> tuple[int | str | None, Tensor | None]:
    """The first tensor with tokens in ``value``, and the field that it is in."""
    if isinstance(value, Tensor):
        return None, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next(((key, item) for key, item in items if isinstance(item, Tensor) and item.dim() > 2), (None, None))


def _place(site: Site, values: Sequence[Tensor | None], seen: Sequence[ShapeTrace]) -> Place | None:
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

"""A spec to begin with, for a model of which nothing is known: what two passes tell, and what they could not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from torch import Tensor, nn

from backsight.core import Pixels, UserError
from backsight.models.places import Found, find_stages
from backsight.models.survey import Survey, survey

GENERIC = {"layers", "layer", "blocks", "block", "stages", "model", "module", "body", "features"}
"""Words in a path that name no stage."""


@dataclass(frozen=True)
class Proposal:
    """``text`` is the YAML, with comments; ``unknown`` says in one line each what could not be told."""

    text: str
    unknown: list[str]


def propose(build: Callable[[tuple[int, int]], nn.Module], pixels: Pixels, name: str) -> Proposal:
    """Look at passes over images of ``pixels.size`` and of twice that width, and propose where the stages are.

    Args:
        build: the image size (H, W) -> the model; the same one each time, if it takes any size.
        pixels: the size and statistics of the images.
        name: the user's word for the model, for the comments.

    Raises:
        UserError: the model cannot take images of this size, or nothing in it looks like a stage.
    """
    module = build(pixels.size)
    seen, unknown = [survey(module, pixels)], []
    try:
        wide = Pixels((pixels.size[0], 2 * pixels.size[1]), pixels.mean, pixels.std)
        seen.append(survey(build(wide.size), wide))
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


def _head(name: str, family: str, seen: list[Survey], pixels: Pixels) -> list[str]:
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


def _answer(seen: Survey, unknown: list[str]) -> list[str]:
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

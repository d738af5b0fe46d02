"""A spec to begin with, for a model of which nothing is known: what two passes tell, and what they could not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml
from torch import Tensor, nn

from backsight.core import Pixels, Spec, UserError
from backsight.engine import StagedModel
from backsight.models.candidates import Found, Place, find_stages, inverse_of, names_of
from backsight.models.shape_tracing import ShapeTrace, trace_shapes


@dataclass(frozen=True)
class Proposal:
    """``text`` is the YAML, with comments; ``unknown`` says in one line each what could not be told."""

    text: str
    unknown: list[str]


def propose(
    build: Callable[[tuple[int, int]], nn.Module],
    pixels: Pixels,
    name: str,
    *,
    pixels_known: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Proposal:
    """Trace passes over images of ``pixels.size`` and of twice that width, and propose where the stages are.

    What is proposed can be staged: places that :func:`~backsight.models.stage` refuses are left out, and named.

    Args:
        build: the image size (H, W) -> the model; the same one each time, if it takes any size.
        pixels: the size and statistics of the images.
        name: the user's word for the model, for the comments.
        pixels_known: whether the statistics of ``pixels`` are those that the model was trained with.
        arguments: keyword arguments of every forward pass.

    Raises:
        UserError: the model cannot take images of this size, or nothing in it looks like a stage.
    """
    module = build(pixels.size)
    seen, unknown = [trace_shapes(module, pixels, arguments)], []
    try:
        wide = replace(pixels, size=(pixels.size[0], 2 * pixels.size[1]))
        seen.append(trace_shapes(build(wide.size), wide, arguments))
    except UserError:
        unknown.append(
            "which axes grow with the image: the model takes images of one size only, so look at the patterns"
        )
    if not pixels_known:
        unknown.append("what images it was trained on: mean, std, interpolation and fit are ImageNet's and bilinear")
    found = [each for each in find_stages(module, seen) if _is_accepted(each.place, module, pixels, arguments, unknown)]
    if not found:
        raise UserError(f"nothing in {name} gives tokens (B N D) or maps (B D h w) of {pixels.size}: is that its size?")
    answer = _answer(seen[0], unknown)
    names = names_of(found)
    before = [None, *found[:-1]]
    stages = [
        _stage(label, each, last, module, unknown) for label, each, last in zip(names, found, before, strict=True)
    ]
    family = type(module).__name__.lower()
    head = _head(name, family, seen, pixels, pixels_known)
    return Proposal("\n".join([*head, *answer, "", "stages:", *stages]) + "\n", unknown)


def _is_accepted(
    place: Place, module: nn.Module, pixels: Pixels, arguments: Mapping[str, Any] | None, unknown: list[str]
) -> bool:
    """Whether a model can be staged at this place alone; why not goes to ``unknown``."""
    spec = Spec("proposed", "features", (place.stage("stage"),))
    try:
        StagedModel(module, spec, pixels, name="the model", arguments=arguments).layout("stage")
    except UserError as error:
        unknown.append(f"whether '{place.site.path}' is a stage: {error}")
        return False
    return True


def _head(name: str, family: str, seen: list[ShapeTrace], pixels: Pixels, pixels_known: bool) -> list[str]:
    sizes = " and ".join(f"{each.size[0]}x{each.size[1]}" for each in seen)
    return [
        f"# Where the stages of {name} are: a proposal, from what its modules gave for images of {sizes} pixels.",
        "# Read it through, correct it, then let `backsight verify` prove it.",
        f"family: {family}  # your word for it",
        "pixels:",
        f"  size: {list(pixels.size)}  # height, width",
        *(
            []
            if pixels_known
            else ["  # COULD NOT TELL what images it was trained on: these are ImageNet's statistics"]
        ),
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
        inner = found.layers[-1].site
        own: dict[str, Any] = {} if inner.field is None else {"field": inner.field}
        own |= {} if inner.pattern == place.site.pattern else {"pattern": inner.pattern}
        layers = _flow({"path": f"{found.blocks}.*", **own}) if own else f"{found.blocks}.*"
        lines.append(f"    layers: {layers}  # {found.depth} blocks")
    if place.prefix:
        lines.append(f"    prefix: {place.prefix}  # tokens before the grid, such as a class token")
    if place.grid is None:
        lines.append("    gridded: false")
    inverse = inverse_of(found, before, module)
    if inverse is None:
        unknown.append(f"an inverse for stage '{name}': add one of those in docs/models.md")
        return "\n".join([*lines, "    # COULD NOT TELL an inverse that goes from here to the stage before it"])
    return "\n".join([*lines, f"    inverse: {_flow(inverse)}"])


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


def _flow(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), default_flow_style=True, sort_keys=False, width=200).strip()

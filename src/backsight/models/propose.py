"""A spec to begin with, for a model of which nothing is known: what two passes tell, and what they could not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import yaml
from torch import nn

from backsight.arrange import fields_of, read_field
from backsight.core import Pixels, Site, Spec, UserError
from backsight.engine import RANDOM, StagedModel
from backsight.io import plain
from backsight.models.answers import guess
from backsight.models.candidates import Found, find_stages, invertible
from backsight.models.custom import build_own, is_own, stage_by_spec
from backsight.models.load import arguments_of, load_module
from backsight.models.shape_tracing import ShapeTrace, trace_shapes

Check = Callable[[StagedModel], Iterable[str]]
"""A staged model -> the names of its stages and layers that are wrong."""


@dataclass(frozen=True)
class Proposal:
    """``text`` is the YAML, with comments; ``unknown`` says in one line each what could not be told."""

    text: str
    unknown: list[str]


def propose_for(
    name: str, size: tuple[int, int] | None = None, weights: Any = None, check: Check | None = None
) -> Proposal:
    """:func:`propose` for any model that :func:`~backsight.models.load_model` opens, whether it can stage it or not.

    Raises:
        UserError: no such model, it takes no images of ``size``, or nothing in it looks like a stage.
    """
    if is_own(name):
        return propose(lambda size: build_own(name, size), Pixels(size or (224, 224)), name, check=check)
    module, family, pixels, _ = load_module(name, size, weights, random_weights=True)
    given = arguments_of(module, family, pixels)
    return propose(lambda _: module, pixels, name, pixels_known=True, arguments=given, check=check)


def propose(
    build: Callable[[tuple[int, int]], nn.Module],
    pixels: Pixels,
    name: str,
    *,
    pixels_known: bool = False,
    arguments: Mapping[str, Any] | None = None,
    check: Check | None = None,
) -> Proposal:
    """Trace passes over images of ``pixels.size`` and of twice that width, and propose where the stages are.

    What is proposed can be staged: places that :func:`~backsight.models.stage` refuses, or that ``check`` finds to be
    wrong, are left out, and named.

    Args:
        build: the image size (H, W) -> the model; the same one each time, if it takes any size.
        pixels: the size and statistics of the images.
        name: the user's word for the model, for the comments.
        pixels_known: whether the statistics of ``pixels`` are those that the model was trained with.
        arguments: keyword arguments of every forward pass.
        check: what proves the places of the model, staged as proposed; its weights may be changed.

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
    answer = _answer(module, seen[0].output, unknown)
    head = [*_head(name, type(module).__name__.lower(), seen, pixels, pixels_known), *_arguments(arguments), *answer]
    found = _accepted(find_stages(module, seen), module, pixels, arguments, unknown)
    while found:
        stages, others = invertible(found, module)
        text = "\n".join([*head, "", "stages:", *(_stage(*each) for each in stages)]) + "\n"
        wrong = _wrong(module, text, check, unknown) if check is not None and stages else []
        if stages and not wrong:
            unknown += [f"an inverse for {_where(each)}: left out" for each in others]
            return Proposal(text, unknown)
        found = _without(wrong, stages, unknown) if wrong else []
    raise UserError(f"nothing in {name} gives tokens (B N D) or maps (B D h w) of {pixels.size}: is that its size?")


def _accepted(
    found: Iterable[Found], module: nn.Module, pixels: Pixels, arguments: Mapping[str, Any] | None, unknown: list[str]
) -> list[Found]:
    """Those that the model can be staged at alone; of the others ``unknown`` says why not."""
    accepted = []
    for each in found:
        spec = Spec("proposed", "features", (each.place.stage("stage"),))
        try:
            StagedModel(module, spec, pixels, name="the model", arguments=arguments).layout("stage")
            accepted.append(each)
        except UserError as error:
            unknown.append(f"whether '{each.place.site.path}' is a stage: {error}")
    return accepted


def _wrong(module: nn.Module, text: str, check: Check, unknown: list[str]) -> list[str]:
    """The stages and layers of the proposal that ``check`` finds to be wrong; none where it can tell nothing."""
    try:
        return list(check(stage_by_spec(module, yaml.safe_load(text), weights=RANDOM)))
    except UserError as error:
        unknown.append(f"whether its places are right: {error}")
        return []


def _without(wrong: Iterable[str], stages: Iterable[tuple[str, Found, Any]], unknown: list[str]) -> list[Found]:
    """The places of ``stages`` without those called ``wrong``, and without the layers of which one is wrong."""
    names, kept = set(wrong), []
    for name, each, _ in stages:
        where = _where(each)
        if name in names:
            unknown.append(f"whether {where} is a stage: what `backsight verify` checks does not hold there")
            continue
        layers = {f"{name}.{index}" for index in range(each.depth)}
        if layers & names:
            unknown.append(f"the layers of {where}: what `backsight verify` checks does not hold there")
            each = replace(each, layers=(), blocks="")
        kept.append(each)
    return kept


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
        *([f"  crop_fraction: {pixels.crop_fraction}"] if pixels.crop_fraction != 1 else []),
        *([f"  channels: {pixels.channels}  # brightness, or RGB and opacity"] if pixels.channels != 3 else []),
    ]


def _arguments(arguments: Mapping[str, Any] | None) -> list[str]:
    """The lines of what every forward pass is given beside the images."""
    if not arguments:
        return []
    return [yaml.safe_dump({"arguments": plain(arguments, "arguments")}, default_flow_style=None, width=110).rstrip()]


def _stage(name: str, found: Found, inverse: Mapping[str, Any]) -> str:
    place = found.place
    lines = [f"  - name: {name}  # {_in_words(found)}", f"    site: {_flow(_site(place.site))}"]
    if found.blocks:
        inner = {**_site(found.layers[-1].site), "path": f"{found.blocks}.*"}
        inner = {key: value for key, value in inner.items() if key != "pattern" or value != place.site.pattern}
        lines.append(f"    layers: {_flow(inner) if len(inner) > 1 else inner['path']}  # {found.depth} blocks")
    if place.prefix:
        lines.append(f"    prefix: {place.prefix}  # tokens before the grid, such as a class token")
    if place.grid is None:
        lines.append("    gridded: false")
    return "\n".join([*lines, f"    inverse: {_flow(inverse)}"])


def _site(site: Site) -> dict[str, Any]:
    """What of ``site`` its path does not say already."""
    said: dict[str, Any] = {"path": site.path}
    said |= {"side": "input"} if site.side == "input" else {}
    said |= {} if site.field is None else {"field": site.field}
    return {**said, "pattern": site.pattern}


def _where(found: Found) -> str:
    site = found.place.site
    return f"'{site.path}'{' input' if site.side == 'input' else ''} ({_in_words(found)})"


def _in_words(found: Found) -> str:
    place = found.place
    grid = f"on a grid of {place.grid[0]}x{place.grid[1]}" if place.grid else "on no grid"
    return f"{place.tokens} tokens of width {place.width}, {grid}"


def _answer(module: nn.Module, output: Any, unknown: list[str]) -> list[str]:
    """The lines of the task and the prediction."""
    task, answer = guess(module, output)
    if task == "classify":
        classes = read_field(output, answer.logits).shape[1]
        lines = [f"task: classify  # the output has {classes} numbers for each image: logits of classes"]
        unknown.append("whether the output's numbers are logits of classes: if not, the task is features")
        return lines + ([] if answer.logits is None else [f"prediction: {answer.logits}"])
    if task == "detect":
        unknown.append(
            "whether the last class is 'no object' (scores: softmax) or the scores are independent (sigmoid)"
        )
        return ["task: detect", f"prediction: {_flow(asdict(answer))}"]
    names = ", ".join(map(str, fields_of(output))) or type(output).__name__
    unknown.append(f"which output is the prediction (there is {names}): for now the model is staged for its features")
    return ["task: features  # COULD NOT TELL which output is the prediction: classify, detect or features"]


def _flow(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), default_flow_style=True, sort_keys=False, width=200).strip()

"""Editing an image and its features: a region recoloured, tokens replaced, and the forward pass gone on from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from backsight.app.model_view import ForwardPass, InputImage, ModelView
from backsight.app.state import Change, read_cells
from backsight.app.workspace import Workspace
from backsight.core import Detections, UserError
from backsight.experiments.objects import fill_boxes, object_labels, object_masks
from backsight.perturb import FILTERS, NOISES, generator_for, noise_tokens, recolour, tokens_at

BRUSH = (32, 32)
"""Rows and columns of the cells that the brush paints, on an image of any size."""

LEAST_SCORE = 0.5
"""Of a detection whose box can be recoloured."""

EVERYWHERE, BRUSHED = "all", "brush"


@dataclass(frozen=True)
class Edited:
    """The passes ``before`` and ``after`` an edit, the same if nothing was changed."""

    before: ForwardPass
    after: ForwardPass


def apply(workspace: Workspace, state: Change) -> Edited:
    """Run the model on an image; recolour it and run again, replace tokens and go on from there, as ``state`` has it.

    Raises:
        UserError: a model, image, object, colour, stage, noise or cell that is not there.
    """
    model = workspace.model(state.model)
    image = workspace.image(state.picture, model)
    before = after = model.run(image)
    region = region_of(model, image, state)
    if state.colour not in FILTERS:
        raise UserError(f"no colour filter '{state.colour[:40]}': there are {', '.join(FILTERS)}")
    if state.colour != "none":
        recoloured = recolour(image.pixels[None], state.colour, region[None])[0]
        painted = state.brush if state.where == BRUSHED else ""
        after = model.run(image, recoloured, f"{state.colour} {state.where} {painted}")
    if state.tokens:
        after = _replace_tokens(workspace, model, after, state)
    return Edited(before, after)


def complete(workspace: Workspace, state: Change) -> Change:
    """The state with the first model and example where none is named, and with what does not fit them set back: the
    stage, the object, the tokens."""
    state = workspace.with_first_choices(state)
    model = workspace.model(state.model)
    if state.stage not in model.grids:
        state = replace(state, stage=next(iter(model.grids), ""))
    if state.where not in dict(regions(model, workspace.image(state.picture, model))):
        state = replace(state, where=EVERYWHERE)
    try:
        read_cells(state.tokens, model.grids.get(state.stage, (0, 0)))
    except UserError:
        state = replace(state, tokens="")
    return state


# ---- regions


def regions(model: ModelView, image: InputImage) -> list[tuple[str, str]]:
    """Where an image can be recoloured, and in words: everywhere, known or detected objects, a brush."""
    found = [(EVERYWHERE, "the whole picture"), (BRUSHED, "where I paint")]
    if image.target is not None and image.target.masks is not None:
        names = image.classes or {}
        labels = object_labels(image.target).tolist()
        found += [(f"known.{index}", f"{names.get(each, each)} (true outline)") for index, each in enumerate(labels)]
    return found + [(name, words) for name, words, _ in _detected(model, image)]


def region_of(model: ModelView, image: InputImage, state: Change) -> Tensor:
    """The pixels that ``state`` recolours, ``H W`` bool.

    Raises:
        UserError: no such object, or a cell that the brush does not have.
    """
    if state.where == EVERYWHERE:
        return torch.ones(image.size, dtype=torch.bool)
    if state.where == BRUSHED:
        cells = read_cells(state.brush, BRUSH)
        return functional.interpolate(cells[None, None].float(), image.size)[0, 0] > 0
    kind, _, number = state.where.partition(".")
    if kind == "detected":
        masks = [mask for _, _, mask in _detected(model, image)]
    else:
        masks = [] if image.target is None else list(object_masks(image.target, image.size))
    if not number.isdecimal() or int(number) >= len(masks):
        raise UserError(f"there is no object '{state.where[:40]}' in this picture: choose another place to recolour")
    return masks[int(number)]


def _detected(model: ModelView, image: InputImage) -> Iterator[tuple[str, str, Tensor]]:
    """The boxes of what the model detects in the unchanged image, surest first: name, words, ``H W`` bool."""
    found = model.predict(model.run(image))
    if not isinstance(found, Detections):
        return
    sure = found.above(LEAST_SCORE)
    for place, index in enumerate(sure.scores.argsort(descending=True, stable=True).tolist()):
        label = int(sure.classes[index])
        words = f"{sure.labels.get(label, f'class {label}')} (detected box)"
        yield f"detected.{place}", words, fill_boxes(sure.boxes[[index]].cpu(), image.size)[0]


# ---- tokens


def _replace_tokens(workspace: Workspace, model: ModelView, forward: ForwardPass, state: Change) -> ForwardPass:
    """``forward`` with tokens of one stage replaced. Noise follows from the image, so a link shows it again."""
    if state.stage not in model.grids:
        raise UserError(f"tokens at '{state.stage[:40]}' have no place in the picture: {', '.join(model.grids)} have")
    if state.noise not in NOISES:
        raise UserError(f"no noise '{state.noise[:40]}': there are {', '.join(NOISES)}")
    layout = model.model.layout(state.stage)
    chosen = tokens_at(layout, read_cells(state.tokens, layout.grids[-1]))
    features = [forward.trace[state.stage]]
    other = ""
    if state.noise == "swap":
        other = state.other or workspace.other_example(state.picture)
        features.append(model.run(workspace.image(other, model)).trace[state.stage])
    draw = [generator_for(0, state.picture) for _ in features]
    replaced = partial(noise_tokens, kind=state.noise, generators=draw, prefix=layout.prefix)
    batch = torch.cat(features)
    noised = replaced(batch, chosen.expand(len(batch), -1))[:1]
    return model.resume(forward, state.stage, noised, f"{state.noise} {other} {state.tokens}")

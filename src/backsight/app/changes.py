"""What is changed in a picture or in its features, and the pass that goes on from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from backsight.app.eyes import Eyes, Seen
from backsight.app.observatory import Observatory
from backsight.app.sources import Source
from backsight.app.state import Change, read_cells
from backsight.core import Detections, UserError
from backsight.data import Target
from backsight.experiments.objects import fill_boxes, object_labels, object_masks
from backsight.perturb import FILTERS, NOISES, generator_for, noise_tokens, recolour, tokens_at

BRUSH = (32, 32)
"""Rows and columns of the cells that the brush paints, on a picture of any size."""

SURE = 0.5
"""The least score of a detection whose box can be recoloured."""

EVERYWHERE, BRUSHED = "all", "brush"


@dataclass(frozen=True)
class Changed:
    """The passes ``before`` and ``after`` a change, the same if nothing was changed, and the ``region`` that was
    recoloured, ``H W`` bool."""

    before: Seen
    after: Seen
    region: Tensor | None = None


def apply(observatory: Observatory, state: Change) -> Changed:
    """Look at a picture, recolour it and look again, replace tokens and go on from there, as ``state`` says.

    Raises:
        UserError: a model, picture, object, colour, stage, noise or cell that is not there.
    """
    eyes = observatory.choose(state.model)
    source = observatory.source(state.picture, eyes)
    before = after = eyes.see(source)
    region = region_of(eyes, source, state)
    if state.colour not in FILTERS:
        raise UserError(f"no colour filter '{state.colour[:40]}': there are {', '.join(FILTERS)}")
    if state.colour != "none":
        image = recolour(source.image[None], state.colour, region[None])[0]
        after = eyes.see(source, image, f"{state.colour} {state.where} {state.brush if state.where == BRUSHED else ''}")
    if state.tokens:
        after = _replace_tokens(observatory, eyes, after, state)
    return Changed(before, after, region)


def settled(observatory: Observatory, state: Change) -> Change:
    """The state with what no longer fits its picture and model set back: the stage, the object, the tokens."""
    eyes = observatory.choose(state.model)
    state = replace(state, model=eyes.name, picture=state.picture or observatory.examples[0])
    if state.stage not in eyes.grids:
        state = replace(state, stage=next(iter(eyes.grids), ""))
    if state.where not in dict(places(eyes, observatory.source(state.picture, eyes))):
        state = replace(state, where=EVERYWHERE)
    try:
        read_cells(state.tokens, eyes.grids.get(state.stage, (0, 0)))
    except UserError:
        state = replace(state, tokens="")
    return state


# ---- where


def places(eyes: Eyes, source: Source) -> list[tuple[str, str]]:
    """Where a picture can be recoloured, and how to say so: everywhere, objects that are known or detected, a brush."""
    found = [(EVERYWHERE, "the whole picture"), (BRUSHED, "where I paint")]
    if source.target is not None and source.target.masks is not None:
        names = source.classes or {}
        labels = object_labels(source.target).tolist()
        found += [(f"known.{index}", f"{names.get(each, each)} (true outline)") for index, each in enumerate(labels)]
    return found + [(name, words) for name, words, _ in _detected(eyes, source)]


def region_of(eyes: Eyes, source: Source, state: Change) -> Tensor:
    """The pixels that ``state`` recolours, ``H W`` bool.

    Raises:
        UserError: no such object, or a cell that the brush does not have.
    """
    size = (source.image.shape[-2], source.image.shape[-1])
    if state.where == EVERYWHERE:
        return torch.ones(size, dtype=torch.bool)
    if state.where == BRUSHED:
        cells = read_cells(state.brush, BRUSH)
        return functional.interpolate(cells[None, None].float(), size)[0, 0] > 0
    kind, _, number = state.where.partition(".")
    masks = [mask for name, _, mask in _detected(eyes, source)] if kind == "detected" else _known(source.target, size)
    if not number.isdecimal() or int(number) >= len(masks):
        raise UserError(f"there is no object '{state.where[:40]}' in this picture: choose another place to recolour")
    return masks[int(number)]


def _known(target: Target | None, size: tuple[int, int]) -> list[Tensor]:
    return [] if target is None else list(object_masks(target, size))


def _detected(eyes: Eyes, source: Source) -> Iterator[tuple[str, str, Tensor]]:
    """The boxes of what the model detects in the untouched picture, surest first: name, words, ``H W`` bool."""
    answer = eyes.answer(eyes.see(source))
    if not isinstance(answer, Detections):
        return
    sure = answer.above(SURE)
    size = (source.image.shape[-2], source.image.shape[-1])
    for place, index in enumerate(sure.scores.argsort(descending=True, stable=True).tolist()):
        label = int(sure.classes[index])
        words = f"{sure.labels.get(label, f'class {label}')} (detected box)"
        yield f"detected.{place}", words, fill_boxes(sure.boxes[[index]].cpu(), size)[0]


# ---- tokens


def _replace_tokens(observatory: Observatory, eyes: Eyes, seen: Seen, state: Change) -> Seen:
    """The pass of ``seen``, tokens of one stage replaced. Noise follows from the picture, so a link shows it again."""
    if state.stage not in eyes.grids:
        raise UserError(f"tokens at '{state.stage[:40]}' have no place in the picture: {', '.join(eyes.grids)} have")
    if state.noise not in NOISES:
        raise UserError(f"no noise '{state.noise[:40]}': there are {', '.join(NOISES)}")
    layout = eyes.model.layout(state.stage)
    chosen = tokens_at(layout, read_cells(state.tokens, layout.grids[-1]))
    features = [seen.trace[state.stage]]
    other = ""
    if state.noise == "swap":
        other = state.other or swapped_with(observatory, state)
        features.append(eyes.see(observatory.source(other, eyes)).trace[state.stage])
    draw = [generator_for(0, state.picture) for _ in features]
    replaced = partial(noise_tokens, kind=state.noise, generators=draw, prefix=layout.prefix)
    batch = torch.cat(features)
    noised = replaced(batch, chosen.expand(len(batch), -1))[:1]
    return eyes.edit(seen, state.stage, noised, f"{state.noise} {other} {state.tokens}")


def swapped_with(observatory: Observatory, state: Change) -> str:
    """The picture that tokens come from unless one is named: the first example that is another one."""
    return next((each for each in observatory.examples if each != state.picture), state.picture)

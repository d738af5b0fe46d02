"""How far a stage's inverse reaches into the layers before it (paper, sec. 4.5, Fig. 10, 17 and 18)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from backsight.core import UserError
from backsight.data import Batch
from backsight.experiments.drawing import models_of, points, title_of
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject, by_seed, distinct_names, is_read_as, layers_of, stage_of
from backsight.figures import Pages, Panel, Part, pages, panel_part, picture_part
from backsight.metrics import mse, on_valid
from backsight.results import INPUT, Measurement, Picture, Result
from backsight.validation import AnyNumber

WIDEST = 8
"""The most pictures in a row of the figure; of more layers every second (third, ...) is shown."""


BLANK = "blank"
"""The layer of tokens that hold nothing, beside those of a component that ends in a norm."""


class Reading(NamedTuple):
    """The layer (or stage) ``layer`` of the component ``stage``, which inverts as if it were stage ``reads``: by the
    inverses from there on. The labels of what is measured and shown."""

    stage: str
    layer: str
    reads: str


def measure(subject: Subject, *, num_pictures: AnyNumber = 2) -> Result:
    """The output of every layer, given to inverses that were trained on the end of its stage, or on its beginning.

    The inverse of a stage is trained on its last layer alone. What it makes of the others tells how much of a code the
    layers share: the error rises with the distance from the layer that the inverse was trained on. A layer of the
    encoder is read as ``encoder`` (through the whole chain) and as ``backbone`` (through the inverse of the backbone
    alone); of the decoder as ``decoder``, since queries are no feature map. In general a layer is read as its own stage
    and as the one before, wherever the layouts are the same; layers that fit neither are left out, with a note.

    Where a component ends in a norm (DETR's decoder does), its layers are read through that norm, as the model itself
    reads them. Beside them stands the layer ``blank``: tokens that hold nothing (zeros, through the same norm), as the
    queries are that enter DETR's decoder. What the inverse makes of them it would make of any image.

    Labels: ``model``, ``stage`` (that the layer belongs to), ``layer``, ``reads`` (the stage it is taken for),
    ``metric`` (``mse``, RGB in [0, 1]). Layers are named as the model names them; the stage before counts as the
    layer before the first, and the last layer goes by the stage's name where it is the same. Pictures carry ``model``,
    ``stage``, ``layer``, ``reads`` and ``image``; they are the first seed's.

    Args:
        subject: a model with its chains.
        num_pictures: how many images are shown, the first ones.

    Raises:
        UserError: there is no layer to read.
    """
    measurements = list(_errors(subject))
    if not measurements:
        raise UserError(
            f"no stage of {subject.name} has layers that an inverse reads: take a model with a transformer encoder"
        )
    pictures, settings = _pictures(subject, num_pictures), {"num_pictures": num_pictures}
    return subject.result("intermediate_layers", measurements, pictures, settings, _notes(subject))


def readings(subject: Subject) -> list[Reading]:
    """Every layer of every stage that has layers, with the stages that it can be read as."""
    found = []
    for stage in subject.stages:
        layers = layers_of(subject, stage)
        inner = [layer for layer in layers if stage_of(layer) == stage and layer != stage]
        for read_as in (subject.model.spec.before(stage), stage):
            fitting = [layer for layer in layers if is_read_as(subject, layer, read_as)]
            if not set(inner).isdisjoint(fitting):
                found += [Reading(stage, layer, read_as) for layer in fitting]
        if final_norm(subject, stage) is not None and any(each.stage == stage for each in found):
            found.append(Reading(stage, BLANK, stage))
    return found


def final_norm(subject: Subject, stage: str) -> nn.Module | None:
    """The norm that a component ends in, which its layers have not passed; None where there is none."""
    site = subject.model.spec.stage(stage).sites[-1]
    if site.side == "input":
        return None
    parts = subject.model.module.get_submodule(site.path).children()
    norms = [each for each in parts if isinstance(each, nn.LayerNorm)]
    return norms[-1] if len(norms) == 1 else None


def _notes(subject: Subject) -> list[str]:
    named = {each.layer for each in readings(subject)}
    layers = [name for name in distinct_names(subject) if "." in name and stage_of(name) in subject.stages]
    unread = [name for name in layers if name not in named]
    return [f"{subject.name}: no inverse reads the layout of {', '.join(unread)}"] if unread else []


def read(subject: Subject, batch: Batch, reading: Reading) -> Tensor:
    """The images that a layer gives by one reading, ``S B 3 H W`` in [0, 1]."""
    own = reading.reads == reading.stage and stage_of(reading.layer) in (reading.stage, BLANK)
    norm = final_norm(subject, reading.stage) if own else None
    if norm is not None and reading.layer != reading.stage:
        trace = subject.trace(batch)
        features = torch.zeros_like(trace[reading.stage]) if reading.layer == BLANK else trace[reading.layer]
        with torch.no_grad():
            return subject.invert(norm(features), reading.stage)
    if reading.reads == stage_of(reading.layer):
        return subject.reconstruct(batch, reading.layer)
    return subject.reconstruct(batch, reading.layer, reads=reading.reads)


def _errors(subject: Subject) -> Iterator[Measurement]:
    found = readings(subject)

    def error(batch: Batch) -> dict[Reading, Tensor]:
        metric = on_valid(mse, batch.valid)
        return {each: by_seed(metric, read(subject, batch, each), batch.images) for each in found}

    for reading, errors in subject.gather(error).items():
        yield Measurement({**reading._asdict(), "metric": "mse"}, errors)


def _pictures(subject: Subject, count: int) -> Iterator[Picture]:
    for batch in subject.batches:
        for index in range(min(max(0, count), len(batch.ids))):
            image = batch.ids[index]
            shown = batch.cut(index, batch.images[index])
            yield Picture({"stage": INPUT, "image": image}, shown.cpu())
            for reading in readings(subject):
                picture = batch.cut(index, read(subject, batch, reading)[0, index]).cpu()
                yield Picture({**reading._asdict(), "image": image}, picture)
        count -= len(batch.ids)


# ---- the figure


def draw(result: Result) -> Pages:
    """For every model the error over its layers, a line for each reading; below, the first images."""
    parts = []
    for model in models_of(result):
        parts += [_curves(result, model), *_strip(result, model)]
    return pages(parts)


def _curves(result: Result, model: str) -> Part:
    panels = []
    for stage in _stages(result, model):
        found = [m for m in result.select(model=model, stage=stage, metric="mse") if m.labels["layer"] != BLANK]
        table = {
            f"read as {name}": points([each for each in found if each.labels["reads"] == name], "layer")
            for name in dict.fromkeys(each.labels["reads"] for each in found)
        }
        nothing = result.select(model=model, stage=stage, layer=BLANK)
        blank = {"blank tokens": nothing[0].mean()} if nothing else {}
        panels.append(Panel(f"{stage}: MSE of the image, RGB in [0, 1]", table, blank))
    return panel_part(panels, columns=2, heading=title_of(result, model))


def _stages(result: Result, model: str) -> list[str]:
    """The stages that have layers, in order."""
    return list(dict.fromkeys(str(each.labels["stage"]) for each in result.select(model=model, metric="mse")))


def _strip(result: Result, model: str) -> list[Part]:
    """A block of pictures for each stage, a row for each image and reading."""
    parts = []
    for stage in _stages(result, model):
        shown = result.shown(model=model, stage=stage)
        named = list(dict.fromkeys(str(each.labels["layer"]) for each in shown))
        layers = _thinned([layer for layer in named if layer != BLANK]) + [layer for layer in named if layer == BLANK]
        rows, names = [], []
        for source in result.shown(model=model, stage=INPUT):
            image = source.labels["image"]
            for number, reads in enumerate(dict.fromkeys(each.labels["reads"] for each in shown)):
                own = result.shown(model=model, stage=stage, image=image, reads=reads)
                pictures = {each.labels["layer"]: each.image for each in own}
                rows.append([None if number else source.image, *(pictures.get(layer) for layer in layers)])
                names.append(f"as {reads}")
        if rows:
            parts.append(picture_part(rows, [INPUT, *layers], names))
    return parts


def _thinned(layers: list[str]) -> list[str]:
    """At most :data:`WIDEST` of them, evenly spaced, the last always among them."""
    step = -(-len(layers) // WIDEST) or 1
    return layers[::-1][::step][::-1]


INTERMEDIATE_LAYERS = Experiment(
    "intermediate_layers",
    "How far do the inverses of a stage reach into its layers?",
    measure,
    draw,
    reading=(
        "Errors when the inverse of a stage reads its layers. It was trained on the last of them: a high error at an "
        "early layer may mean another code, not less knowledge."
    ),
)

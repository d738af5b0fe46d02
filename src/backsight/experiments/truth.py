"""Does a reconstruction tell the truth? Known changes of drawn scenes, looked for in reconstructions and by probes.

One thing in a scene is changed and the scene drawn again, so the two pictures differ in that alone. Then it is
measured how much of the change survives: in the reconstructions, and in what a linear probe reads from the very
features that they are made of. An inverse trained on the squared error paints the average of what it has seen
wherever the features do not tell (or it did not learn to read) a colour, and an average looks like a prototype that
the model keeps. Where the probe finds what the inverse does not show, the reconstruction says something about the
inverse, not about the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from backsight.core import Layout, UserError
from backsight.data.world import MIN_VISIBLE, World
from backsight.data.world.render import Rendering, render
from backsight.data.world.scenes import Scenes, recolour, with_backdrop_of, without_clutter
from backsight.devices import exact
from backsight.engine import StagedModel, Trace
from backsight.experiments.drawing import models_of, named_lines, title_of
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject
from backsight.figures import Pages, Panel, pages, panel_part
from backsight.metrics.probe import FEWEST, Probe, fit_probe
from backsight.results import Measurement, Picture, Result
from backsight.validation import Number

_AT_ONCE = 32
_READERS = {"in the reconstruction": {"reader": "inverse"}, "read by a linear probe": {"reader": "probe"}}
_WORDS = {
    "hue": "hue of an object",
    "object": "an object taken away",
    "background": "another background",
    "clutter": "clutter taken away",
}


def measure(subject: Subject, *, num_scenes: Number = 200, num_training: Number = 1_500) -> Result:
    """How much of each known change survives at each stage: 1 all of it, 0 nothing.

    With ``y`` the mean colour of the changed region (RGB), in the scene before and after, and ``q`` the same as
    reconstructed (or as read by the probe), survival is ``<q' - q, y' - y> / |y' - y|^2``.

    Labels: ``model``, ``metric`` (``survival``), ``law``, ``stage``, ``factor`` (see
    :data:`FACTORS`), and ``reader``:
    ``inverse`` (a row for each seed), ``probe`` (ridge regression on the features, a row for each of as many sets of
    training scenes; the object in question there wears random hues, so that a probe cannot guess a colour
    from a class), or ``pixels`` (the same ratio over all pixels of the region, of the inverse).

    Args:
        num_scenes: of the test stream.
        num_training: scenes that a probe is fitted to.

    Raises:
        UserError: the data is not the drawn world, or there are too few scenes to fit a probe to.
    """
    settings = {"num_scenes": num_scenes, "num_training": num_training}
    return subject.result("truth", _measure(subject, num_scenes, num_training), _pictures(subject), settings)


def _measure(subject: Subject, num_scenes: int, num_training: int) -> Iterator[Measurement]:
    world, seeds = _world(subject), range(0 if subject.control else len(subject.seeds))
    # All probes first: whether there are scenes enough for them is known before anything is measured.
    fitted = {factor: [_fit_probes(subject, world, factor, num_training, seed) for seed in seeds] for factor in FACTORS}
    for factor, probes in fitted.items():
        found: dict[tuple[str, str], list[Tensor]] = {}
        count = min(num_scenes, _AT_ONCE) if subject.control else num_scenes
        for start in range(0, count, _AT_ONCE):
            change = edit(world, range(start, min(start + _AT_ONCE, count)), factor).to(subject.model.device)
            for key, values in _survivals(subject, change, probes):
                found.setdefault(key, []).append(values)
        for (stage, reader), parts in found.items():
            labels = {"law": world.law, "factor": factor, "stage": stage, "reader": reader}
            yield Measurement({**labels, "metric": "survival"}, torch.cat(parts, 1))


@torch.no_grad()
def _survivals(
    subject: Subject, change: Edit, probes: Sequence[dict[str, Probe]]
) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """((stage, reader), survival ``S B``) of one batch of changes."""
    before, after = subject.model.run(change.before), subject.model.run(change.after)
    region, known = (
        change.region,
        _mean_colour(change.after, change.region) - _mean_colour(change.before, change.region),
    )
    pixels = (change.after - change.before) * region[:, None]
    for stage in subject.stages:
        painted = subject.invert(after, stage) - subject.invert(before, stage)
        yield (stage, "inverse"), _ratio(torch.stack([_mean_colour(seed, region) for seed in painted]), known)
        yield (stage, "pixels"), _ratio((painted * region[:, None]).flatten(2), pixels.flatten(1))
        if not probes:  # of a control, whose features are those of the model
            continue
        features = [read_features(subject.model, trace, stage, region) for trace in (before, after)]
        read = torch.stack([each[stage](features[1]) - each[stage](features[0]) for each in probes])
        yield (stage, "probe"), _ratio(read, known)


def _ratio(found: Tensor, known: Tensor) -> Tensor:
    """How much of ``known`` ``B T`` is in ``found`` ``S B T``: ``S B``, NaN where nothing was changed."""
    found, known = exact(found), exact(known)
    size = known.square().sum(-1)
    return (found * known).sum(-1) / torch.where(size > 1e-6, size, math.nan)


def _mean_colour(images: Tensor, region: Tensor) -> Tensor:
    """``B 3 H W``, ``B H W`` -> the mean colour of the region, ``B 3``; 0 where it is empty."""
    weights = region[:, None].float()
    return (images * weights).sum((2, 3)) / weights.sum((2, 3)).clamp(min=1)


@torch.no_grad()
def _fit_probes(subject: Subject, world: World, factor: str, num: int, seed: int) -> dict[str, Probe]:
    """A probe for every stage, from scenes of the training stream: the mean colour of the region that would change."""
    training = World(world.law, world.size, world.seed // 3 * 3, single=world.single)
    generator = torch.Generator().manual_seed(seed)
    features: dict[str, list[Tensor]] = {stage: [] for stage in subject.stages}
    colours = []
    for start in range(seed * num, (seed + 1) * num, _AT_ONCE):
        indices = range(start, min(start + _AT_ONCE, (seed + 1) * num))
        hues = 360 * torch.rand(len(indices), generator=generator)
        change = edit(training, indices, factor, hues).to(subject.model.device)
        there = change.region.flatten(1).any(1)
        for images in (change.before[there], change.after[there]):
            trace, region = subject.model.run(images), change.region[there]
            colours.append(_mean_colour(images, region))
            for stage in subject.stages:
                features[stage].append(read_features(subject.model, trace, stage, region))
    known = torch.cat(colours)
    if len(known) < FEWEST:
        raise UserError(
            f"num_training={num}: {len(known)} pictures of these scenes have {_WORDS[factor]}, a probe needs {FEWEST}: "
            "take more scenes"
        )
    return {stage: fit_probe(torch.cat(parts), known) for stage, parts in features.items()}


@torch.no_grad()
def _pictures(subject: Subject, num: int = 3) -> Iterator[Picture]:
    """The first scenes, their objects in the opposite hue, and both as the first seed paints them."""
    if subject.control:
        return
    change = edit(_world(subject), range(4 * num), "hue").to(subject.model.device)
    rows = change.region.flatten(1).any(1).nonzero()[:num, 0]
    for name, images in (("before", change.before[rows]), ("after", change.after[rows])):
        trace = subject.model.run(images)
        columns = {"input": images, **{stage: subject.invert(trace, stage)[0] for stage in subject.stages}}
        for stage, pictures in columns.items():
            for index, picture in enumerate(pictures):
                labels = {"law": _world(subject).law, "stage": stage, "when": name}
                yield Picture({**labels, "scene": index}, picture)


def _world(subject: Subject) -> World:
    if not isinstance(subject.data, World):
        raise UserError(f"truth needs scenes whose truth is known: give world:LAW for data, not {subject.data.name}")
    return subject.data


# ---- edits of drawn scenes, one truth at a time

CHANGED = 6
"""A pixel belongs to what an edit changed if one of its colours moved by this much, of 255."""


@dataclass(frozen=True)
class Edit:
    """B scenes ``before`` and ``after`` one thing in them changed, ``B 3 H W`` in [0, 1], and the ``region`` ``B H W``
    (bool) where it did; empty in scenes that do not have the thing."""

    before: Tensor
    after: Tensor
    region: Tensor

    def to(self, device: torch.device) -> Edit:
        """The same on ``device``."""
        return Edit(self.before.to(device), self.after.to(device), self.region.to(device))


def edit(world: World, indices: Sequence[int], factor: str, hues: Tensor | None = None) -> Edit:
    """The scenes ``indices`` of ``world`` with ``factor``, one of :data:`FACTORS`, changed.

    ``hues`` ``B`` (degrees) first gives the object in question these colours, whatever the law says: before and
    after then differ as they would, but the scenes carry no rule of colour.
    """
    scenes = world.scenes(indices)
    before = render(scenes, world.size)
    item, seen = _best_seen(before)
    if hues is not None:
        scenes = recolour(scenes, item, hues)
        before = render(scenes, world.size)
    after = render(FACTORS[factor](world, scenes, indices, item), world.size)
    region = _region(factor, before, after, item) & seen[:, None, None]
    return Edit(before.images / 255, after.images / 255, region)


def _best_seen(rendering: Rendering) -> tuple[Tensor, Tensor]:
    """The object of each scene with most pixels in view, ``B``, and whether it is labelled at all."""
    areas = rendering.masks.flatten(2).sum(2) * (rendering.visible >= MIN_VISIBLE)
    most, item = areas.max(1)
    return item, most > 0


def _other_hue(_: World, scenes: Scenes, __: Sequence[int], item: Tensor) -> Scenes:
    hues = scenes.objects.hue[torch.arange(len(scenes)), item]
    return recolour(scenes, item, hues + 180)


def _without_object(_: World, scenes: Scenes, __: Sequence[int], item: Tensor) -> Scenes:
    present = scenes.objects.present.clone()
    present[torch.arange(len(scenes)), item] = False
    return replace(scenes, objects=replace(scenes.objects, present=present))


def _other_background(world: World, scenes: Scenes, indices: Sequence[int], _: Tensor) -> Scenes:
    # From the far end of the same stream: no scene is its own neighbour.
    return with_backdrop_of(scenes, world.scenes([world.length + index for index in indices]))


def _without_clutter(_: World, scenes: Scenes, __: Sequence[int], ___: Tensor) -> Scenes:
    return without_clutter(scenes)


def _region(factor: str, before: Rendering, after: Rendering, item: Tensor) -> Tensor:
    moved = (before.images.int() - after.images.int()).abs().amax(1) >= CHANGED
    rows = torch.arange(len(item))
    if factor in ("hue", "object"):
        return before.masks[rows, item]
    return moved & ~before.masks.any(1) if factor == "background" else moved


FACTORS: dict[str, Callable[[World, Scenes, Sequence[int], Tensor], Scenes]] = {
    "hue": _other_hue,
    "object": _without_object,
    "background": _other_background,
    "clutter": _without_clutter,
}
"""What is changed: the hue of the object that is seen best (to the opposite one), that object itself (taken away),
the background (another scene's texture and colours), the clutter (all of it taken away)."""


# ---- what a linear probe is given of a stage


def read_features(model: StagedModel, trace: Trace, stage: str, region: Tensor) -> Tensor:
    """``B F`` about ``region`` ``B H W`` (bool).

    On a grid: the tokens' mean weighted by how much of the region they cover, level by level, and the prefix
    tokens. Object queries have no place: the query whose box covers the region best, beside the mean and the maximum
    over all queries.
    """
    layout, features = model.layout(stage), trace[stage]
    if not layout.grids:
        return torch.cat([_best_query(trace, features, region), features.mean(1), features.amax(1)], 1)
    return torch.cat([features[:, : layout.prefix].flatten(1), *_pooled(features, layout, region)], 1)


def _pooled(features: Tensor, layout: Layout, region: Tensor) -> list[Tensor]:
    start, pooled = layout.prefix, []
    for h, w in layout.grids:
        cover = functional.adaptive_avg_pool2d(region[:, None].float(), (h, w)).flatten(2)
        share = cover / cover.sum(2, keepdim=True).clamp(min=1e-9)
        pooled.append((share @ features[:, start : start + h * w])[:, 0])
        start += h * w
    return pooled


def _best_query(trace: Trace, features: Tensor, region: Tensor) -> Tensor:
    """The features of the query whose box overlaps the box around the region most, ``B D``."""
    from torchvision.ops import box_convert, box_iou

    boxes = box_convert(trace["prediction"][..., -4:].clamp(0, 1), "cxcywh", "xyxy")
    chosen = [box_iou(around[None], own)[0].argmax() for around, own in zip(_around(region), boxes, strict=True)]
    return features[torch.arange(len(features)), torch.stack(chosen)]


def _around(region: Tensor) -> Tensor:
    """The box around each region, ``B 4`` (x0, y0, x1, y1 in 0..1); the whole image where it is empty."""
    ends = []
    for axis in (1, 2):
        occupied = region.any(axis)
        occupied = occupied | ~occupied.any(1, keepdim=True)
        length = occupied.shape[1]
        first, last = occupied.float().argmax(1), length - occupied.flip(1).float().argmax(1)
        ends += [first / length, last / length]
    left, right, top, bottom = ends
    return torch.stack([left, top, right, bottom], 1)


# ---- the figure


def draw(result: Result) -> Pages:
    """For each model and law a panel for each change: its survival over the stages, in the reconstruction and as the
    probe reads it."""
    parts = []
    laws = {each.labels["model"]: each.labels["law"] for each in result.measurements}
    for model in models_of(result):
        law, panels = laws[model], []
        for factor, title in _WORDS.items():
            lines = named_lines(result, _READERS, model=model, law=law, factor=factor)
            panels.append(Panel(title, lines, {"": 1.0}, label="" if panels else "share that survives"))
        heading = f"{title_of(result, model)}, law: {law}"
        parts.append(panel_part([panel for panel in panels if panel.table], columns=4, heading=heading, height=1.7))
    return pages(parts)


TRUTH = Experiment(
    "truth",
    "Does a reconstruction show what the features hold?",
    measure,
    draw,
    reading=(
        "The share of a known change that survives in the reconstruction (inverse), and that a linear probe reads "
        "from the features: 1 all of it, 0 nothing, above 1 exaggerated. Where the probe has more, the picture leaves "
        "out what the stage knows."
    ),
)

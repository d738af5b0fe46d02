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
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backsight.core import UserError
from backsight.data.world import World
from backsight.devices import exact
from backsight.experiments.edits import FACTORS, Edit, edit
from backsight.experiments.readout import read_features
from backsight.experiments.run import Experiment
from backsight.experiments.settings import Number
from backsight.experiments.subject import Subject
from backsight.figures import ErrorPoint
from backsight.figures.panels import Series, panels
from backsight.metrics.probe import FEWEST, Probe, fit_probe
from backsight.results import Measurement, Picture, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AT_ONCE = 32
_READERS = {"inverse": "in the reconstruction", "probe": "read by a linear probe"}
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
    :data:`~backsight.experiments.edits.FACTORS`), and ``reader``:
    ``inverse`` (a row for each seed), ``probe`` (ridge regression on the features, a row for each of as many sets of
    training scenes; the object in question there wears random hues, so that a probe cannot guess a colour
    from a class), or ``pixels`` (the same ratio over all pixels of the region, of the inverse).

    Args:
        num_scenes: of the test stream.
        num_training: scenes that a probe is fitted to.

    Raises:
        UserError: the data is not the drawn world, or there are too few scenes to fit a probe to.
    """
    measurements = list(_measure(subject, num_scenes, num_training))
    settings = {"num_scenes": num_scenes, "num_training": num_training}
    return Result("truth", [subject.card()], measurements, list(_pictures(subject)), settings)


def _measure(subject: Subject, num_scenes: int, num_training: int) -> Iterator[Measurement]:
    world, seeds = _world(subject), range(len(subject.seeds))
    # All probes first: whether there are scenes enough for them is known before anything is measured.
    fitted = {factor: [_fit_probes(subject, world, factor, num_training, seed) for seed in seeds] for factor in FACTORS}
    for factor, probes in fitted.items():
        found: dict[tuple[str, str], list[Tensor]] = {}
        for start in range(0, num_scenes, _AT_ONCE):
            change = edit(world, range(start, min(start + _AT_ONCE, num_scenes)), factor).to(subject.model.device)
            for key, values in _survivals(subject, change, probes):
                found.setdefault(key, []).append(values)
        for (stage, reader), parts in found.items():
            labels = {"model": subject.name, "law": world.law, "factor": factor, "stage": stage, "reader": reader}
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
    change = edit(_world(subject), range(4 * num), "hue").to(subject.model.device)
    rows = change.region.flatten(1).any(1).nonzero()[:num, 0]
    for name, images in (("before", change.before[rows]), ("after", change.after[rows])):
        trace = subject.model.run(images)
        columns = {"input": images, **{stage: subject.invert(trace, stage)[0] for stage in subject.stages}}
        for stage, pictures in columns.items():
            for index, picture in enumerate(pictures):
                labels = {"model": subject.name, "law": _world(subject).law, "stage": stage, "when": name}
                yield Picture({**labels, "scene": index}, picture)


def _world(subject: Subject) -> World:
    if not isinstance(subject.data, World):
        raise UserError(f"truth needs scenes whose truth is known: give world:LAW for data, not {subject.data.name}")
    return subject.data


def draw(result: Result) -> Figure:
    """A panel for each model and law: survival over the stages, in the reconstruction and as the probe reads it."""
    charts: dict[str, list[Series]] = {}
    for each in result.measurements:
        reader = _READERS.get(str(each.labels["reader"]))
        if reader:
            lines = charts.setdefault(f"{each.labels['model']}, law: {each.labels['law']}", [])
            what = _WORDS[str(each.labels["factor"])]
            point = ErrorPoint(str(each.labels["stage"]), each.known().mean(1).tolist(), each.interval())
            same = next((line for line in lines if (line.what, line.how) == (what, reader)), None)
            if same is None:
                lines.append(Series(what, reader, [point]))
            else:
                lines[lines.index(same)] = Series(what, reader, [*same.points, point])
    return panels(charts, "share that survives")


TRUTH = Experiment("truth", "Does a reconstruction show what the features hold?", measure, draw)

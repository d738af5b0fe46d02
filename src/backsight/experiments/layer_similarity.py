"""How alike layers are, in what they hold and in what is seen of them (paper, abstract and sec. 4.5)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from backsight.core import IMAGE, UserError
from backsight.data import Batch
from backsight.experiments.drawing import models_of, title_of
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject, distinct_names, is_read_as, stage_of
from backsight.figures import Pages, heat_map_part, pages
from backsight.metrics import centred_gram, cka_shares, correlations, hsic
from backsight.metrics.similarity import FEWEST_IMAGES
from backsight.results import Measurement, Result

FEATURES, RECONSTRUCTIONS = "features", "reconstructions"

TITLES = {
    (FEATURES, "cka"): "CKA of features",
    (RECONSTRUCTIONS, "cka"): "CKA of reconstructions",
    (FEATURES, "correlation"): "Correlation of features (white: their layouts differ)",
    (RECONSTRUCTIONS, "correlation"): "Correlation of reconstructions",
}
"""Of the maps, in their order."""


def measure(subject: Subject) -> Result:
    """The similarity of every two layers: of their features, and of the images that are reconstructed from them.

    Two measures. ``cka``: whether the same images lie near each other, for layers of any shape (minibatch CKA by the
    unbiased estimator, Nguyen et al. 2021); its columns are batches, and their mean is the CKA, to which a small last
    batch contributes little (:func:`~backsight.metrics.cka_shares`). ``correlation``: of the
    values themselves, as deviations from the mean of the batch, for layers of one layout; its columns are images.
    1 is equal, 0 unrelated. The input's own pixels are the layer ``image``; a last layer
    that is the stage itself goes by the stage's name. Each layer is reconstructed as its own
    stage reads it; reconstructions have a row for every seed.

    Labels: ``model``, ``of`` (``features`` or ``reconstructions``), ``metric``, ``layer``, ``other`` (the later
    layer of the two). CKA leaves out a batch of fewer than four images, with a note.

    Raises:
        UserError: there is no batch of four images.
    """
    if not any(map(_is_enough, subject.batches)):
        most = max(len(batch.ids) for batch in subject.batches)
        raise UserError(
            f"layer_similarity needs {FEWEST_IMAGES} images in a batch at least, {subject.name} has {most}: "
            "give it more images"
        )
    left_out = sum(len(batch.ids) for batch in subject.batches if not _is_enough(batch))
    notes = []
    if left_out:
        notes = [f"{subject.name}: {left_out} images are left out of CKA, their batch is too small"]
    return subject.result("layer_similarity", _measure(subject), notes=notes)


def _is_enough(batch: Batch) -> bool:
    return len(batch.ids) >= FEWEST_IMAGES


def _measure(subject: Subject) -> Iterator[Measurement]:
    tables: dict[str, list[Tensor]] = defaultdict(list)
    related: dict[tuple[str, str, str], list[Tensor]] = defaultdict(list)
    names = {FEATURES: [IMAGE, *distinct_names(subject)], RECONSTRUCTIONS: [IMAGE, *invertible(subject)]}
    for batch in subject.batches:
        for of, seeds in _representations(subject, batch, names).items():
            if _is_enough(batch):
                grams = [torch.stack([centred_gram(each) for each in layers.values()]) for layers in seeds]
                tables[of].append(torch.stack([hsic(each) for each in grams]))
            for pair, values in _correlate(seeds).items():
                related[(of, *pair)].append(values)
    counts = [len(batch.ids) for batch in subject.batches if _is_enough(batch)]
    for of, parts in tables.items():
        shares = torch.stack([cka_shares(each, counts) for each in torch.stack(parts, 1)])  # S batches L L
        for (first, one), (second, other) in combinations(enumerate(names[of]), 2):
            labels = {"of": of, "metric": "cka", "layer": one, "other": other}
            yield Measurement(labels, shares[:, :, first, second])
    for (of, one, other), parts in related.items():
        labels = {"of": of, "metric": "correlation", "layer": one, "other": other}
        yield Measurement(labels, torch.cat(parts, 1))


def invertible(subject: Subject) -> list[str]:
    """The stages and layers that the chains can reconstruct the image from, each read as its own stage."""
    return [name for name in distinct_names(subject) if is_read_as(subject, name, stage_of(name))]


def _representations(
    subject: Subject, batch: Batch, names: Mapping[str, Sequence[str]]
) -> dict[str, list[dict[str, Tensor]]]:
    """By kind, for each seed (features have one): ``B ...`` by layer."""
    trace = subject.trace(batch)
    found = {name: subject.reconstruct(batch, name) for name in names[RECONSTRUCTIONS] if name != IMAGE}
    images = [
        {IMAGE: batch.images, **{name: each[seed] for name, each in found.items()}}
        for seed in range(len(subject.seeds))
    ]
    return {FEATURES: [{name: trace[name] for name in names[FEATURES]}], RECONSTRUCTIONS: images}


def _correlate(seeds: Sequence[Mapping[str, Tensor]]) -> dict[tuple[str, str], Tensor]:
    """The correlations of every two layers of one shape, ``S B`` by (layer, other)."""
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, each in seeds[0].items():
        groups[tuple(each.shape)].append(name)
    found = {}
    for group in groups.values():
        values = torch.stack([correlations([layers[name] for name in group]) for layers in seeds])  # S B L L
        for (first, one), (second, other) in combinations(enumerate(group), 2):
            found[one, other] = values[:, :, first, second]
    return found


def table_of(result: Result, model: str, of: str, metric: str) -> tuple[list[str], Tensor]:
    """The names of the layers, and their similarities as a symmetric table, ``L L``, NaN where there is no answer."""
    found = result.select(model=model, of=of, metric=metric)
    order = [str(m.labels[end]) for end in ("layer", "other") for m in result.select(model=model, metric="cka")]
    related = {str(each.labels[end]) for end in ("layer", "other") for each in found}
    names = [name for name in dict.fromkeys(order) if name in related]  # of CKA, which has all layers in their order
    table = torch.full((len(names), len(names)), torch.nan, dtype=torch.float64).fill_diagonal_(1)
    for each in found:
        one, other = (names.index(str(each.labels[end])) for end in ("layer", "other"))
        table[one, other] = table[other, one] = each.mean()
    return names, table


def draw(result: Result) -> Pages:
    """Four maps for each model: both measures, of features and of reconstructions."""
    parts = []
    for model in models_of(result):
        found = {title: table_of(result, model, of, metric) for (of, metric), title in TITLES.items()}
        maps = {title: each for title, each in found.items() if each[0]}
        parts.append(heat_map_part(maps, heading=f"{title_of(result, model)}: 1 alike, 0 unrelated"))
    return pages(parts)


LAYER_SIMILARITY = Experiment(
    "layer_similarity",
    "Which layers are alike?",
    measure,
    draw,
    padded=False,
    reading=(
        "How alike the features of two layers are over all images. Alike is no proof of the same content: the "
        "measures see what varies most."
    ),
)

"""Claims about layers: how far an inverse reaches, and how alike they are (paper, sec. 4.5 and abstract)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from backsight.core import IMAGE, UserError
from backsight.experiments.claims.claim import CLASSIFIER, DETECTOR, Claim, Comparison, Evidence, for_both
from backsight.experiments.intermediate_layers import BLANK
from backsight.experiments.layer_similarity import FEATURES, RECONSTRUCTIONS
from backsight.experiments.subject import stage_of
from backsight.metrics import ratio
from backsight.results import Measurement

_FEWEST_LAYERS = 3

# ---- inverses on layers that they were not trained on


def _readings(evidence: Evidence) -> Iterator[tuple[str, list[Measurement], int]]:
    """(what is read, its layers in order, which of them the inverse was trained on)."""
    found = evidence.select(metric="mse")
    for stage, reads in dict.fromkeys((str(m.labels["stage"]), str(m.labels["reads"])) for m in found):
        layers = [m for m in evidence.select(metric="mse", stage=stage, reads=reads) if m.labels["layer"] != BLANK]
        names = [str(each.labels["layer"]) for each in layers]
        if reads in names:
            yield f"{stage} layers read as {reads}", layers, names.index(reads)


def _rising_with_distance(evidence: Evidence) -> Iterator[Comparison]:
    for what, layers, trained in _readings(evidence):
        if len(layers) >= _FEWEST_LAYERS:
            distances = [abs(index - trained) for index in range(len(layers))]
            yield Comparison(what, rank_correlation(torch.stack([each.values for each in layers]), distances))


def rank_correlation(values: Tensor, along: Sequence[float]) -> Tensor:
    """How surely values rise: the correlation of their ranks with the ranks of ``along``.

    >>> float(rank_correlation(torch.tensor([0.1, 0.4, 0.2]), [0, 1, 2]))
    0.5

    Args:
        values: ``L ...``.
        along: L numbers, one for each row; equal ones share their mean rank, equal values are ranked in their order.

    Returns:
        ``...`` in [-1, 1]: 1 where each step along raises the value; NaN where one of them is not known.
    """
    places = torch.tensor(list(along), dtype=torch.float64)
    places = (places[:, None] > places).double().sum(1) + (places[:, None] == places).double().sum(1) / 2
    ranks = values.argsort(dim=0, stable=True).argsort(dim=0).double()
    ranks, places = ranks - ranks.mean(0), (places - places.mean()).reshape(-1, *[1] * (values.ndim - 1))
    found = (ranks * places).sum(0) / (ranks.square().sum(0) * places.square().sum()).sqrt()
    return torch.where(values.isfinite().all(0), found, math.nan)  # sorting would put what is not known last


def _next_layer(evidence: Evidence) -> Iterator[Comparison]:
    for what, layers, trained in _readings(evidence):
        own = layers[trained].values
        near = [layers[index] for index in (trained - 1, trained + 1) if 0 <= index < len(layers)]
        for each in near:
            name = f"{what}: {each.labels['layer']} less {layers[trained].labels['layer']}"
            yield Comparison(name, ratio(each.values - own, own))


# ---- how alike layers are: a column of CKA is a batch


def _pairs(evidence: Evidence, of: str, role: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """The similarities of neighbours, and of all other pairs."""
    found = [each for each in evidence.select(role, of=of, metric="cka") if each.labels["layer"] != IMAGE]
    names = list(dict.fromkeys(str(each.labels[end]) for end in ("layer", "other") for each in found))
    neighbours = set(pairwise(names))
    near = [each.values for each in found if (each.labels["layer"], each.labels["other"]) in neighbours]
    far = [each.values for each in found if (each.labels["layer"], each.labels["other"]) not in neighbours]
    if not near or not far:
        raise UserError(f"{evidence.models[role]} has too few layers to compare neighbours with others")
    return near, far


def _neighbours_alike(evidence: Evidence) -> Iterator[Comparison]:
    for of in (FEATURES, RECONSTRUCTIONS):
        near, far = (torch.stack(each).mean(0) for each in _pairs(evidence, of))
        yield Comparison(f"{of}: neighbours less others", near - far, columns="batches")


def _within_encoder(evidence: Evidence, of: str, role: int) -> Tensor:
    """The mean similarity of all pairs of layers of the encoder."""
    pairs = [
        each.values
        for each in evidence.select(role, of=of, metric="cka")
        if {stage_of(str(each.labels[end])) for end in ("layer", "other")} == {"encoder"}
    ]
    if not pairs:
        raise UserError(f"{evidence.models[role]} has no encoder of several layers")
    return torch.stack(pairs).mean(0)


def _more_alike(evidence: Evidence) -> Iterator[Comparison]:
    for of in (FEATURES, RECONSTRUCTIONS):
        own, other = (_within_encoder(evidence, of, role) for role in (0, 1))
        yield Comparison(f"{of} of the encoder's layers", own, other, columns="batches")


LAYER_CLAIMS = (
    *for_both(
        "gradual",
        "The further a layer of {} is from the one that an inverse was trained on, the worse it reads it.",
        "sec. 4.5, Fig. 10",
        "intermediate_layers",
        _rising_with_distance,
        "rank correlation of error and distance",
        least=0.3,
    ),
    *for_both(
        "shared-code",
        "The layer of {} next to the one that an inverse was trained on is read nearly as well: "
        "the error grows by less than half.",
        "sec. 4.5, Fig. 10",
        "intermediate_layers",
        _next_layer,
        "share of the error at the trained layer",
        expect="below",
        null=0.5,
    ),
    *for_both(
        "neighbours-alike",
        "Neighbouring layers of {} are more alike than others, in features and in reconstructions.",
        "abstract, sec. 4.5",
        "layer_similarity",
        _neighbours_alike,
        "CKA",
        least=0.05,
    ),
    Claim(
        "vit-more-alike",
        "The layers of a ViT's encoder are more alike than those of DETR's.",
        "abstract, sec. 4.5",
        "layer_similarity",
        (CLASSIFIER, DETECTOR),
        _more_alike,
        "CKA, less that of the detector",
        least=0.02,
        of_inverses=False,
    ),
)

"""Claims about changed inputs and features: colours, noise, attention (paper, sec. 4.3 and 4.4)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from backsight.core import UserError
from backsight.experiments.attention_ablation import FULL, TUNED
from backsight.experiments.claims.claim import CLASSIFIER, DETECTOR, Claim, Comparison, Evidence
from backsight.experiments.color_perturbation import INPUT, SIX
from backsight.experiments.token_noise import CHAIN, LOCAL
from backsight.results import Measurement

# ---- colours of objects


def _spread(evidence: Evidence, stage: str) -> Tensor:
    """The pairwise error between six recolourings, in units of the inputs' own mean."""
    own, given = (evidence.values(metric="pairwise mse", region="image", stage=each) for each in (stage, INPUT))
    return own / given.nanmean().clamp(min=1e-12)


def _converging(evidence: Evidence) -> Iterator[Comparison]:
    stages = evidence.stages()
    if "encoder" not in stages:
        raise UserError(f"{evidence.models[0]} has no inverse of an encoder")
    for before, after in pairwise([INPUT, *stages[: stages.index("encoder") + 1]]):
        yield Comparison(f"{before} less {after}", _spread(evidence, before) - _spread(evidence, after))


def _apart_again(evidence: Evidence) -> Iterator[Comparison]:
    yield Comparison("decoder less encoder", _spread(evidence, "decoder") - _spread(evidence, "encoder"))


def _constant(evidence: Evidence) -> Iterator[Comparison]:
    for stage in evidence.stages():
        yield Comparison(f"{stage} less {INPUT}", _spread(evidence, stage) - _spread(evidence, INPUT))


# ---- the task on recoloured images


def _task_lost(evidence: Evidence, metric: str) -> Iterator[Comparison]:
    recoloured = torch.stack([evidence.values(metric=metric, filter=name) for name in SIX]).mean(0)
    yield Comparison("as they are less six filters", evidence.values(metric=metric, filter="none") - recoloured)


def _accuracy_lost(evidence: Evidence) -> Iterator[Comparison]:
    yield from _task_lost(evidence, "accuracy")


def _objects_lost(evidence: Evidence) -> Iterator[Comparison]:
    yield from _task_lost(evidence, "found")


# ---- noise in tokens


def _contained(evidence: Evidence, role: int = 0, inverse: str = CHAIN) -> list[Measurement]:
    return evidence.select(role, metric="containment", inverse=inverse)


def _route(measurement: Measurement) -> str:
    labels = measurement.labels
    there = labels["noised"] if labels["noised"] == labels["stage"] else f"{labels['noised']} to {labels['stage']}"
    return f"{there}, {100 * float(labels['share']):g} %"


def _containment(evidence: Evidence) -> Iterator[Comparison]:
    for each in _contained(evidence):
        yield Comparison(_route(each), each.values)


def _containment_local(evidence: Evidence) -> Iterator[Comparison]:
    found = _contained(evidence, inverse=LOCAL)
    if not found:
        raise UserError(f"the chains of {evidence.models[0]} have no local inverse (backbone@local)")
    for each in found:
        if each.labels["stage"] != evidence.stages()[0]:  # where the local inverse itself would keep noise in its patch
            yield Comparison(_route(each), each.values)


def _more_contained(evidence: Evidence) -> Iterator[Comparison]:
    others = {_route(each): each.values for each in _contained(evidence, 1)}
    for each in _contained(evidence):
        if _route(each) in others:
            yield Comparison(_route(each), each.values, others[_route(each)])


# ---- no attention between patches


def _ablation_cost(evidence: Evidence) -> Iterator[Comparison]:
    full, tuned = (evidence.values(metric="accuracy", condition=each) for each in (FULL, TUNED))
    yield Comparison(f"{FULL} less {TUNED} without it", full - tuned)


CHANGES_CLAIMS = (
    Claim(
        "detr-colours-converge",
        "Recoloured objects grow alike in a detector: the error between six recolourings falls from the input to the "
        "backbone, and on to the encoder.",
        "sec. 4.3, Fig. 8 left",
        "color_perturbation",
        (DETECTOR,),
        _converging,
        "pairwise MSE in units of the input's",
        least=0.05,
    ),
    Claim(
        "detr-decoder-diverges",
        "At a detector's decoder the recolourings are further apart again than at the encoder.",
        "sec. 4.3, Fig. 8 left",
        "color_perturbation",
        (DETECTOR,),
        _apart_again,
        "pairwise MSE in units of the input's",
        least=0.05,
    ),
    Claim(
        "vit-colours-constant",
        "In a ViT the recolourings stay as far apart as in the input, at every stage.",
        "sec. 4.3, Fig. 8 left",
        "color_perturbation",
        (CLASSIFIER,),
        _constant,
        "pairwise MSE in units of the input's",
        "near",
        least=0.2,
    ),
    Claim(
        "vit-task-drops",
        "A ViT's accuracy drops on recoloured images.",
        "sec. 4.3, Fig. 8 right",
        "color_perturbation",
        (CLASSIFIER,),
        _accuracy_lost,
        "share of images that are right",
        least=0.02,
    ),
    Claim(
        "detr-task-stays",
        "A detector finds as many objects in recoloured images.",
        "sec. 4.3, Fig. 8 right",
        "color_perturbation",
        (DETECTOR,),
        _objects_lost,
        "share of objects that are found",
        "near",
        least=0.05,
    ),
    Claim(
        "vit-noise-stays",
        "In a ViT noise stays in the patches of its tokens, wherever it enters and is read.",
        "sec. 4.4, Fig. 9",
        "token_noise",
        (CLASSIFIER,),
        _containment,
        "containment",
        "near",
        null=1.0,
        least=0.1,
    ),
    Claim(
        "detr-noise-blends",
        "In a detector noise blends into the image: other patches are touched, too.",
        "sec. 4.4, Fig. 9",
        "token_noise",
        (DETECTOR,),
        _containment,
        "containment",
        "below",
        null=1.0,
        least=0.1,
    ),
    Claim(
        "detr-noise-blends-local",
        "It blends in within the encoder, as an inverse backbone shows that sees one token at a time.",
        "app. C, Fig. 16",
        "token_noise",
        (DETECTOR,),
        _containment_local,
        "containment",
        "below",
        null=1.0,
        least=0.1,
    ),
    Claim(
        "vit-contains-more",
        "A ViT keeps noise in its patches better than a detector, on every route that both have.",
        "sec. 4.4, Fig. 9",
        "token_noise",
        (CLASSIFIER, DETECTOR),
        _more_contained,
        "containment, less that of the detector",
        least=0.05,
    ),
    Claim(
        "attention-costs",
        "Without attention between patches a ViT loses accuracy, even after fine-tuning.",
        "sec. 4.4",
        "attention_ablation",
        (CLASSIFIER,),
        _ablation_cost,
        "share of images that are right",
        least=0.01,
    ),
    Claim(
        "attention-costs-little",
        "It keeps most of it: fine-tuned, it loses less than fifteen points.",
        "sec. 4.4",
        "attention_ablation",
        (CLASSIFIER,),
        _ablation_cost,
        "share of images that are right",
        "below",
        null=0.15,
    ),
)

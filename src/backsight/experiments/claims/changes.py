"""Claims about changed inputs and features: colours, noise, attention (paper, sec. 4.3, 4.4), drawn scenes (ours)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from backsight.core import UserError
from backsight.experiments.attention_ablation import FULL, TUNED
from backsight.experiments.claims.claim import CLASSIFIER, DETECTOR, Claim, Comparison, Evidence, Role
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
        partial(_task_lost, metric="accuracy"),
        "share of images that are right",
        least=0.02,
    ),
    Claim(
        "detr-task-stays",
        "A detector finds as many objects in recoloured images.",
        "sec. 4.3, Fig. 8 right",
        "color_perturbation",
        (DETECTOR,),
        partial(_task_lost, metric="found"),
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


# ---- known changes of drawn scenes, by the law that their colours follow


def _survival(evidence: Evidence, stage: str, reader: str = "inverse", role: int = 0, factor: str = "hue") -> Tensor:
    return evidence.values(role, metric="survival", factor=factor, stage=stage, reader=reader)


def _survives(evidence: Evidence) -> Iterator[Comparison]:
    stage = evidence.deepest()
    yield Comparison(f"hue, {stage}", _survival(evidence, stage))


def _more_than_by_other_law(evidence: Evidence) -> Iterator[Comparison]:
    """The scenes of two laws differ in their hues: no image is in both."""
    stage = evidence.deepest()
    yield Comparison(f"hue, {stage}", _survival(evidence, stage), _survival(evidence, stage, role=1))


def _read_as_shown(evidence: Evidence) -> Iterator[Comparison]:
    for stage in evidence.stages():
        difference = _survival(evidence, stage, "probe") - _survival(evidence, stage)
        yield Comparison(f"hue, {stage}: probe less reconstruction", difference)


def _hue_less_object(evidence: Evidence) -> Iterator[Comparison]:
    """How much more of an object's presence survives than of its hue; in paired scenes."""
    stage = evidence.deepest()
    yield Comparison(stage, _survival(evidence, stage, factor="object") - _survival(evidence, stage))


def _truth_claims(task: str, name: str, short: str) -> tuple[Claim, ...]:
    prior, defining, independent = (Role(task, law) for law in ("prior", "defining", "independent"))
    return (
        Claim(
            f"hue-survives-defining-{short}",
            f"Where hue defines the class, the hue of objects survives to the deepest stage of {name}.",
            "ours",
            "truth",
            (defining,),
            _survives,
            "share of the change that survives",
            null=0.5,
        ),
        Claim(
            f"hue-by-law-{short}",
            f"More of the hue survives in {name} where it defines the class than where it says nothing of it.",
            "ours",
            "truth",
            (defining, independent),
            _more_than_by_other_law,
            "share of the change that survives, less that under the law independent",
            least=0.1,
        ),
        Claim(
            f"inverse-shows-hue-{short}",
            f"The reconstruction shows what the features of {name} hold: as much of a hue as a probe reads.",
            "ours",
            "truth",
            (prior,),
            _read_as_shown,
            "share of the change that survives",
            "near",
            least=0.2,
        ),
        Claim(
            f"object-before-hue-{short}",
            f"Where hue says nothing of the class, an object survives better than its hue, up to the deepest stage "
            f"of {name}.",
            "ours",
            "truth",
            (independent,),
            _hue_less_object,
            "share of the change that survives",
            least=0.1,
        ),
    )


TRUTH_CLAIMS = (*_truth_claims("detect", "a detector", "detr"), *_truth_claims("classify", "a ViT", "vit"))

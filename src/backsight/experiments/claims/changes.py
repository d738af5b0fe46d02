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
from backsight.experiments.color_perturbation import SIX
from backsight.experiments.token_noise import CHAIN, LOCAL
from backsight.metrics import ratio
from backsight.results import INPUT, Measurement

# ---- colours of objects


def _spread(evidence: Evidence, stage: str, other: str) -> Tensor:
    """The pairwise error between six recolourings, less that at another stage, over that of the inputs: a ratio of two
    means."""
    own, given = (evidence.values(metric="pairwise mse", region="image", stage=each) for each in (stage, INPUT))
    return ratio(own - evidence.values(metric="pairwise mse", region="image", stage=other), given)


def _converging(evidence: Evidence) -> Iterator[Comparison]:
    stages = evidence.stages()
    if "encoder" not in stages:
        raise UserError(f"{evidence.models[0]} has no inverse of an encoder")
    for before, after in pairwise([INPUT, *stages[: stages.index("encoder") + 1]]):
        yield Comparison(f"{before} less {after}", _spread(evidence, before, after))


def _apart_again(evidence: Evidence) -> Iterator[Comparison]:
    yield Comparison("decoder less encoder", _spread(evidence, "decoder", "encoder"))


def _constant(evidence: Evidence) -> Iterator[Comparison]:
    for stage in evidence.stages():
        yield Comparison(f"{stage} less {INPUT}", _spread(evidence, stage, INPUT))


# ---- the task on recoloured images


def _accuracy_lost(evidence: Evidence) -> Iterator[Comparison]:
    """Over the six filters together, as the paper's claim is."""
    recoloured = torch.stack([evidence.values(metric="accuracy", filter=name) for name in SIX])
    own = evidence.values(metric="accuracy", filter="none")
    yield Comparison("as they are less six filters", own - recoloured.mean(0))


def _found_lost(evidence: Evidence) -> Iterator[Comparison]:
    """Filter by filter: what is found, and the average precision, of groups of images."""
    for name in SIX:
        own, other = (evidence.values(metric="found", filter=each) for each in ("none", name))
        yield Comparison(f"found, {name}", own - other, kind="share")
    for name in SIX:
        own, other = (evidence.values(metric="AP by group", filter=each) for each in ("none", name))
        yield Comparison(f"AP, {name}", own - other, columns="groups of images")


# ---- noise in tokens


def _route(measurement: Measurement) -> str:
    labels = measurement.labels
    there = labels["noised"] if labels["noised"] == labels["stage"] else f"{labels['noised']} to {labels['stage']}"
    return f"{there}, {100 * float(labels['share']):g} %"


def _through_the_model(evidence: Evidence, inverse: str, role: int = 0) -> list[Measurement]:
    """The routes on which the model itself, or an inverse that sees all tokens, could spread the noise: those that are
    read after the first stage. There the inverse's own convolutions alone would spread it, or its patches keep it."""
    found = evidence.select(role, metric="containment", inverse=inverse)
    return [each for each in found if each.labels["stage"] != evidence.stages(role)[0]]


def _most_local(evidence: Evidence, role: int = 0) -> str:
    """The inverse that keeps its own convolutions out of this, where the chains have one."""
    return LOCAL if evidence.select(role, metric="containment", inverse=LOCAL) else CHAIN


def _containment(evidence: Evidence) -> Iterator[Comparison]:
    for each in _through_the_model(evidence, CHAIN):
        yield Comparison(_route(each), each.values)


def _containment_local(evidence: Evidence, noised: str) -> Iterator[Comparison]:
    """By the local inverse; ``noised``: at the ``first`` stage, so that the model's encoder alone can spread the noise,
    or ``later``, so that the inverse encoder alone can."""
    found = _through_the_model(evidence, LOCAL)
    if not found:
        raise UserError(
            f"the chains of {evidence.models[0]} have no local inverse (backbone@local), which alone keeps its own "
            "convolutions out of this"
        )
    first = evidence.stages()[0]
    for each in found:
        if (each.labels["noised"] == first) == (noised == "first"):
            yield Comparison(_route(each), each.values)


def _more_contained(evidence: Evidence) -> Iterator[Comparison]:
    """The detector by its local inverse where it has one: else its backbone's convolutions count, too."""
    others = {_route(each): each.values for each in _through_the_model(evidence, _most_local(evidence, 1), 1)}
    for each in _through_the_model(evidence, CHAIN):
        if _route(each) in others:
            yield evidence.between(_route(each), each.values, others[_route(each)])


def _plausible(evidence: Evidence) -> Iterator[Comparison]:
    """How well noised patches can be found in the picture, where the noise went through the model."""
    first = evidence.stages()[0]
    for each in evidence.select(metric="AUC", inverse=_most_local(evidence), noised=first):
        if each.labels["stage"] != first:
            yield Comparison(_route(each), each.values)


# ---- no attention between patches


def _ablation_cost(evidence: Evidence) -> Iterator[Comparison]:
    full, tuned = (evidence.values(metric="accuracy", condition=each) for each in (FULL, TUNED))
    yield Comparison(f"{FULL} less {TUNED} without it", full - tuned, kind="share")


_SPREAD = "pairwise MSE in units of the input's"

CHANGES_CLAIMS = (
    Claim(
        "detr-colours-converge",
        "Recoloured objects grow alike in a detector: the error between six recolourings falls from the input to the "
        "backbone, and on to the encoder.",
        "sec. 4.3, Fig. 8 left",
        "color_perturbation",
        (DETECTOR,),
        _converging,
        _SPREAD,
        least=0.05,
    ),
    Claim(
        "detr-decoder-diverges",
        "At a detector's decoder the recolourings are further apart again than at the encoder.",
        "sec. 4.3, Fig. 8 left",
        "color_perturbation",
        (DETECTOR,),
        _apart_again,
        _SPREAD,
        least=0.05,
    ),
    Claim(
        "vit-colours-constant",
        "In a ViT the recolourings stay as far apart as in the input, at every stage.",
        "sec. 4.3, Fig. 8 left",
        "color_perturbation",
        (CLASSIFIER,),
        _constant,
        _SPREAD,
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
        of_inverses=False,
    ),
    Claim(
        "detr-task-stays",
        "A detector finds as many objects in recoloured images, as precisely, through each of the six filters.",
        "sec. 4.3, Fig. 8 right",
        "color_perturbation",
        (DETECTOR,),
        _found_lost,
        "share of objects that are found, and AP",
        "near",
        least=0.05,
        of_inverses=False,
    ),
    Claim(
        "vit-noise-stays",
        "In a ViT noise stays in the patches of its tokens, through its encoder and through its inverse.",
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
        "In a detector noise blends into the image within the encoder, as an inverse backbone shows that sees one "
        "token at a time.",
        "sec. 4.4, app. C, Fig. 9, 16",
        "token_noise",
        (DETECTOR,),
        partial(_containment_local, noised="first"),
        "containment",
        "below",
        null=1.0,
        least=0.1,
    ),
    Claim(
        "detr-noise-blends-inverse",
        "Noise in a detector's encoder features blends in within the inverse encoder, shown in the same way.",
        "sec. 4.4, app. C, Fig. 16",
        "token_noise",
        (DETECTOR,),
        partial(_containment_local, noised="later"),
        "containment",
        "below",
        null=1.0,
        least=0.1,
    ),
    Claim(
        "detr-noise-plausible",
        "Noise that went through a detector's encoder is filled with plausible pixels: the patches cannot be found.",
        "sec. 4.4, Fig. 9",
        "token_noise",
        (DETECTOR,),
        _plausible,
        "AUC of a probe for noised patches",
        "near",
        null=0.5,
        least=0.1,
    ),
    Claim(
        "vit-contains-more",
        "A ViT keeps noise in its patches better than a detector, on every route through the model that both have.",
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
        of_inverses=False,
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
        of_inverses=False,
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

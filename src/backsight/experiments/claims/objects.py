"""Claims about what a detector makes of objects: prototypes, what fades, what goes wrong (paper, app. A)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from backsight.core import IMAGE
from backsight.experiments.abstraction import BACKGROUND, DETECTED, UNDETECTED
from backsight.experiments.claims.claim import CLASSIFIER, DETECTOR, Claim, Comparison, Evidence
from backsight.experiments.prototypes import EVERY, OTHERS, OWN


def _prototypical(evidence: Evidence) -> Iterator[Comparison]:
    """At the deepest stage: how much more the colour is that of the objects' class than that of others."""
    stage = evidence.deepest()
    labels: dict[str, Any] = {"metric": "alignment", "stage": stage, "class": EVERY}
    own, others = (evidence.values(against=each, **labels) for each in (OWN, OTHERS))
    yield Comparison(f"{stage}: own class less others", own - others)


def _faded(evidence: Evidence, region: str) -> Tensor:
    """How much less of the pattern of a region is kept at the deepest stage than at the first."""
    first, deepest = (
        evidence.values(metric="pattern kept", region=region, stage=stage)
        for stage in (evidence.stages()[0], evidence.deepest())
    )
    return first - deepest


def _fades(evidence: Evidence, region: str) -> Iterator[Comparison]:
    yield Comparison(f"{evidence.stages()[0]} less {evidence.deepest()}", _faded(evidence, region))


def _fades_more(evidence: Evidence) -> Iterator[Comparison]:
    """Few images have objects of both kinds, and those that do are the crowded ones: these are not paired."""
    detected = _faded(evidence, DETECTED)
    yield Comparison(f"{BACKGROUND} less {DETECTED}", _faded(evidence, BACKGROUND) - detected)
    yield Comparison(f"{UNDETECTED} less {DETECTED}", _faded(evidence, UNDETECTED), detected)


def _missed_vanish(evidence: Evidence) -> Iterator[Comparison]:
    stage = evidence.deepest()
    yield Comparison(f"missed, {stage}", evidence.values(type="missed", metric="presence", stage=stage))


def _missed_fade_more(evidence: Evidence) -> Iterator[Comparison]:
    first, last = evidence.stages()[0], evidence.deepest()
    missed, correct = (
        evidence.values(type=kind, metric="presence", stage=first)
        - evidence.values(type=kind, metric="presence", stage=last)
        for kind in ("missed", "correct")
    )
    yield Comparison(f"{first} less {last}: missed less detected", missed, correct)


def _amplified(evidence: Evidence) -> Iterator[Comparison]:
    stage = evidence.deepest()
    own, given = (evidence.values(type="background", metric="contrast", stage=each) for each in (stage, IMAGE))
    yield Comparison(f"detections on background: {stage} less input", own - given)


OBJECT_CLAIMS = (
    Claim(
        "prototypes-in-detr",
        "A detector's reconstructions of grey images give objects the colour of their class.",
        "app. A, Fig. 11",
        "prototypes",
        (DETECTOR,),
        _prototypical,
        "alignment with the class's hue",
        least=0.1,
    ),
    Claim(
        "no-prototypes-in-vit",
        "A ViT's reconstructions of grey images do not.",
        "app. A",
        "prototypes",
        (CLASSIFIER,),
        _prototypical,
        "alignment with the class's hue",
        "near",
        least=0.1,
    ),
    Claim(
        "background-fades",
        "The background fades with depth.",
        "app. A, Fig. 12",
        "abstraction",
        (DETECTOR,),
        partial(_fades, region=BACKGROUND),
        "contrast kept where it was",
        least=0.05,
    ),
    Claim(
        "undetected-fade",
        "Objects that are not detected fade with depth.",
        "app. A, Fig. 12",
        "abstraction",
        (DETECTOR,),
        partial(_fades, region=UNDETECTED),
        "contrast kept where it was",
        least=0.05,
    ),
    Claim(
        "irrelevant-fades-more",
        "Background and undetected objects fade more than detected ones.",
        "app. A, Fig. 12",
        "abstraction",
        (DETECTOR,),
        _fades_more,
        "contrast kept where it was",
        least=0.05,
    ),
    Claim(
        "missed-vanish",
        "Missed objects have vanished from the reconstructions: less than a quarter of their contrast is left.",
        "app. A, Fig. 13",
        "detection_errors",
        (DETECTOR,),
        _missed_vanish,
        "presence",
        "below",
        null=0.25,
    ),
    Claim(
        "missed-fade-more",
        "Missed objects lose more on the way than detected ones: they were there at the backbone.",
        "app. A, Fig. 13",
        "detection_errors",
        (DETECTOR,),
        _missed_fade_more,
        "presence lost",
        least=0.05,
    ),
    Claim(
        "false-amplified",
        "What a detector sees on mere background is amplified: it stands out more than in the input.",
        "app. A, Fig. 13",
        "detection_errors",
        (DETECTOR,),
        _amplified,
        "contrast with the surroundings, RGB in [0, 1]",
        least=0.01,
    ),
)

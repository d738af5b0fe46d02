"""Claims about draws: what the features leave open (ours)."""

from __future__ import annotations

from collections.abc import Iterator

from backsight.experiments.ambiguity import DRAW, MEAN, NOMINAL
from backsight.experiments.claims.claim import Claim, Comparison, Evidence, Role, for_both


def _nearer_than_the_mean(evidence: Evidence) -> Iterator[Comparison]:
    stage = evidence.deepest()
    own, mean = (evidence.values(metric="features again", stage=stage, of=each) for each in (DRAW, MEAN))
    yield Comparison(f"{stage}: a draw less the mean inverse", own - mean)


def _covered(evidence: Evidence) -> Iterator[Comparison]:
    for stage in evidence.stages():
        for metric in ("hue covered", "brightness covered"):
            yield Comparison(f"{metric}, {stage}", evidence.values(metric=metric, stage=stage))


def _open_hue(evidence: Evidence) -> Iterator[Comparison]:
    stage = evidence.deepest()
    hue, place = (evidence.values(metric=metric, stage=stage) for metric in ("hue spread", "place spread"))
    yield Comparison(f"{stage}: hue less place", hue - place)


DRAW_CLAIMS = (
    *for_both(
        "draws-lead-back",
        "From the deepest stage of {} a draw leads back to its features more nearly than the mean does.",
        "ours",
        "ambiguity",
        _nearer_than_the_mean,
        "cosine between features, less that of the mean inverse",
        of_inverses=False,
    ),
    *for_both(
        "draws-cover-truth",
        "Draws of {} are calibrated: the true hue and brightness of objects lie within nine tenths of their intervals.",
        "ours",
        "ambiguity",
        _covered,
        "share of truths that lie within 90 % intervals",
        expect="near",
        null=NOMINAL,
        least=0.1,
        of_inverses=False,
    ),
    Claim(
        "place-settled-hue-open",
        "Where hue says nothing of the class, a detector's decoder settles the place of objects and not their hue.",
        "ours",
        "ambiguity",
        (Role("detect", "independent"),),
        _open_hue,
        "spread between draws: 0 settled, 1 anything",
        least=0.3,
        of_inverses=False,
    ),
)

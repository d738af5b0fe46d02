"""Our own claims: whether reconstructions tell the truth of drawn scenes, by the law that their colours follow."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from backsight.experiments.claims.claim import Claim, Comparison, Evidence, Role


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


def _claims(task: str, name: str, short: str) -> tuple[Claim, ...]:
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


TRUTH_CLAIMS = (*_claims("detect", "a detector", "detr"), *_claims("classify", "a ViT", "vit"))

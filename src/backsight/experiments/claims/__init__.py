"""The paper's findings, and ours, as claims that the results of experiments decide on."""

from backsight.experiments.claims.changes import CHANGES_CLAIMS, TRUTH_CLAIMS
from backsight.experiments.claims.claim import Claim, Comparison, Evidence, Role
from backsight.experiments.claims.draws import DRAW_CLAIMS
from backsight.experiments.claims.judge import (
    VERDICTS,
    Claims,
    Control,
    Effect,
    Judgement,
    judge,
    load_claims,
    save_claims,
)
from backsight.experiments.claims.layers import LAYER_CLAIMS
from backsight.experiments.claims.objects import OBJECT_CLAIMS
from backsight.experiments.claims.stages import STAGE_CLAIMS

CLAIMS: tuple[Claim, ...] = (
    *STAGE_CLAIMS,
    *CHANGES_CLAIMS,
    *LAYER_CLAIMS,
    *OBJECT_CLAIMS,
    *TRUTH_CLAIMS,
    *DRAW_CLAIMS,
)
"""All of them, in the order of the paper, ours last."""

__all__ = [
    "CLAIMS",
    "VERDICTS",
    "Claim",
    "Claims",
    "Comparison",
    "Control",
    "Effect",
    "Evidence",
    "Judgement",
    "Role",
    "judge",
    "load_claims",
    "save_claims",
]

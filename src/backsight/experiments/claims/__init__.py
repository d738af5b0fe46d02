"""The paper's findings, and ours, as claims that the results of experiments decide on."""

from backsight.experiments.claims.claim import Claim, Comparison, Evidence, Role
from backsight.experiments.claims.judge import (
    VERDICTS,
    Judgement,
    Part,
    judge,
    load_claims,
    save_claims,
)
from backsight.experiments.claims.of_abstraction import ABSTRACTION_CLAIMS
from backsight.experiments.claims.of_changes import CHANGES_CLAIMS
from backsight.experiments.claims.of_layers import LAYER_CLAIMS
from backsight.experiments.claims.of_stages import STAGE_CLAIMS
from backsight.experiments.claims.of_truth import TRUTH_CLAIMS

CLAIMS: tuple[Claim, ...] = (*STAGE_CLAIMS, *CHANGES_CLAIMS, *LAYER_CLAIMS, *ABSTRACTION_CLAIMS, *TRUTH_CLAIMS)
"""All of them, in the order of the paper, ours last."""

__all__ = [
    "CLAIMS",
    "VERDICTS",
    "Claim",
    "Comparison",
    "Evidence",
    "Judgement",
    "Part",
    "Role",
    "judge",
    "load_claims",
    "save_claims",
]

"""Whether a training came out as the one that ships: within the spread that was found between trainings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backsight.shipped import shipped_card, shipped_names

SPREAD: Mapping[str, float] = {"AP": 0.04, "AP50": 0.03, "accuracy": 0.02, "typical": 0.02}
"""How far a figure of another seed may lie from the shipped model's, in its own unit (shares, 0 to 1)."""

CHAIN_SPREAD = 0.15
"""The same of a chain's errors, as a share of the shipped chain's own."""


def compare(name: str, figures: Mapping[str, float]) -> dict[str, tuple[float, float, bool]]:
    """Of every figure with a stated spread: what came out, what the shipped model ``name`` has, whether they agree."""
    shipped: Mapping[str, Any] = _card_of(name)["figures"]
    return {
        figure: (figures[figure], shipped[figure], abs(figures[figure] - shipped[figure]) <= spread)
        for figure, spread in SPREAD.items()
        if figure in figures and figure in shipped
    }


def compare_chains(name: str, relative: Mapping[str, list[float]]) -> dict[str, tuple[float, float, bool]]:
    """The same of a chain's errors by stage, in units of the mean image's, means over the seeds."""
    shipped = _card_of(name).get("chains", {"relative": {}})["relative"]
    found = {}
    for stage, values in relative.items():
        if stage not in shipped:  # an inverse that is new
            continue
        ours, theirs = sum(values) / len(values), sum(shipped[stage]) / len(shipped[stage])
        found[stage] = (ours, theirs, abs(ours - theirs) <= CHAIN_SPREAD * theirs)
    return found


def _card_of(name: str) -> Mapping[str, Any]:
    """The card of the model that ships; of one that is new, an empty one."""
    name = f"zoo/{name.removeprefix('zoo/')}"
    return shipped_card(name) if name in shipped_names() else {"figures": {}}


def in_words(compared: Mapping[str, tuple[float, float, bool]]) -> str:
    """``AP 0.812 (shipped: 0.826, within the spread)``, one after the other."""
    return "; ".join(
        f"{figure} {ours:.3f} (shipped: {theirs:.3f}, {'within' if alike else 'outside'} the spread)"
        for figure, (ours, theirs, alike) in compared.items()
    )

"""Numbers and names as a report writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from backsight.core import split_entry


def format_number(value: str | int | float | None) -> str:
    """Three digits of a fraction, zeros too, all of a whole number, a dash for what is not known, text as it is."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".removesuffix(".")
    return f"{value:,}" if isinstance(value, int) else value


def format_effect(value: float) -> str:
    """Three decimals, of large numbers none: what is smaller than that is no effect in the unit of any claim."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "\N{MINUS SIGN}")


def format_bounds(low: float | None, high: float | None) -> str:
    """An interval in brackets; where there is none, words that say so."""
    return "(no interval)" if low is None or high is None else f"[{format_effect(low)}, {format_effect(high)}]"


def entry_title(entry: str) -> str:
    """``backbone@local`` -> ``backbone (local)``."""
    stage, variant = split_entry(entry)
    return f"{stage} ({variant})" if variant else stage


def known(values: Sequence[float | None]) -> list[float]:
    """Those that are numbers, and finite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are :func:`known`; None where none is."""
    found = known(values)
    return math.fsum(found) / len(found) if found else None

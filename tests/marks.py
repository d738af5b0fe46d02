"""Parameters of which a few stand for all in the fast suite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def quick(values: Iterable[Any], *names: str) -> list[Any]:
    """``values`` (names, or tuples that begin with one) as parameters: all but ``names`` are for the slow suite."""
    rows = [(each,) if isinstance(each, str) else tuple(each) for each in values]
    assert set(names) <= {row[0] for row in rows}
    return [pytest.param(*row, marks=[] if row[0] in names else pytest.mark.slow) for row in rows]

"""Images that a detector cannot take, told in one line where its library would crash or mix up the places of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from backsight.core import UserError

Size = tuple[int, int]
"""(H, W) in pixels."""


def expect_multiples(kind: str, size: Size, step: int, *, square: bool = False) -> None:
    """Refuse sides that are no multiples of ``step``, and, if ``square``, two that are not the same.

    Raises:
        UserError: they are not.
    """
    if size[0] % step or size[1] % step or (square and size[0] != size[1]):
        wanted = f"the same multiple of {step} for both sides" if square else f"multiples of {step}"
        raise UserError(f"a {kind} cannot take images of {size[0]}x{size[1]} pixels: give {wanted}")


def expect_tokens(kind: str, size: Size, strides: Sequence[float], queries: int) -> None:
    """Refuse images with fewer tokens, over the levels of all ``strides``, than a two-stage model draws from them.

    Raises:
        UserError: too few; it names the smallest square that has enough.
    """
    tokens = _tokens(size, strides)
    if tokens < queries:
        step = round(max(strides))
        enough = next(side for side in itertools.count(step, step) if _tokens((side, side), strides) >= queries)
        raise UserError(
            f"a {kind} starts its {queries} queries at the likeliest of its tokens, and images of {size[0]}x{size[1]} "
            f"pixels have {tokens}: {enough}x{enough} would do"
        )


def _tokens(size: Size, strides: Sequence[float]) -> int:
    """Grids are rounded up, as by convolutions with padding."""
    return sum(int(-(-size[0] // stride) * -(-size[1] // stride)) for stride in strides)

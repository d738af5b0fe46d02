"""The learned networks, by name. A new one is one class in one file, and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import Tensor

from backsight.core import Layout, UserError
from backsight.inverses.analytic import Analytic
from backsight.inverses.base import Inverse, Moments
from backsight.inverses.conv import Deconvolution, Local, Patch, Pyramid, ResidualStage
from backsight.inverses.deformable import DeformableDecoder, DeformableEncoder
from backsight.inverses.flow import Flow
from backsight.inverses.prediction import PredictionMLP
from backsight.inverses.ridge import Ridge
from backsight.inverses.swin import SwinStage
from backsight.inverses.transformer import Blocks, Decoder, Encoder, sine_positions
from backsight.validation import convert_arguments, first_line

INVERSES: dict[str, type[Inverse]] = {
    "deconvolution": Deconvolution,
    "local": Local,
    "patch": Patch,
    "analytic": Analytic,
    "ridge": Ridge,
    "encoder": Encoder,
    "decoder": Decoder,
    "blocks": Blocks,
    "prediction": PredictionMLP,
    "swin": SwinStage,
    "residual": ResidualStage,
    "pyramid": Pyramid,
    "deformable_encoder": DeformableEncoder,
    "deformable_decoder": DeformableDecoder,
    "flow": Flow,
}


def build_inverse(
    name: str, source: Layout, target: Layout, options: Mapping[str, Any], constants: Mapping[str, Tensor] | None = None
) -> Inverse:
    """The inverse called ``name`` from the layout ``source`` to the layout ``target``.

    Raises:
        UserError: no such inverse, an option it does not have, or layouts that it cannot connect.
    """
    if name not in INVERSES:
        raise UserError(f"no inverse '{name}': there are {', '.join(INVERSES)}")
    given = convert_arguments(INVERSES[name], options, f"the inverse '{name}'")
    if "constants" in signature(INVERSES[name]).parameters:
        given["constants"] = constants
    try:
        return INVERSES[name](source, target, **given)
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the inverse '{name}' does not fit here: {first_line(error)}") from error


__all__ = [
    "INVERSES",
    "Analytic",
    "Blocks",
    "Decoder",
    "Deconvolution",
    "DeformableDecoder",
    "DeformableEncoder",
    "Encoder",
    "Flow",
    "Inverse",
    "Local",
    "Moments",
    "Patch",
    "PredictionMLP",
    "Pyramid",
    "ResidualStage",
    "Ridge",
    "SwinStage",
    "build_inverse",
    "sine_positions",
]

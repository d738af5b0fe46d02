"""What a benchmark is run with, and the models that it is run on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from backsight.devices import choose_device, choose_precision
from backsight.engine import StagedModel
from backsight.models import load_model
from backsight.options import Precision, parse_size
from backsight.validation import Number, convert_fields

TRUE_SIZE = ("detr-resnet-50", "vit_base_patch16_224")
"""What training is measured on unless others are named, with random weights: speed does not depend on them."""

SHIPPED = ("zoo/detr-prior", "zoo/vit-prior")
"""The same for what is done with trained chains."""


@dataclass(frozen=True)
class Settings:
    """How much is measured, and on what.

    ``models`` are those of every benchmark that takes one; each has its own where none is named. ``rounds`` is how
    often the sides take turns, ``steps`` the batches of a turn of training, ``seeds`` the larger number of them.
    """

    models: tuple[str, ...] = ()
    rounds: Number = 5
    steps: Number = 1
    batch_size: Number = 8
    seeds: Number = 3
    size: str | None = None
    data: str | None = None
    precision: Precision = "auto"
    device_name: str = "auto"

    def __post_init__(self) -> None:
        convert_fields(self)

    @property
    def device(self) -> torch.device:
        """Where everything is computed.

        Raises:
            UserError: no such device.
        """
        return choose_device(self.device_name)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the products under the precision that is asked for."""
        return torch.bfloat16 if choose_precision(self.precision, self.device) == "bf16" else torch.float32

    def chosen(self, default: tuple[str, ...]) -> tuple[str, ...]:
        """The models that were named, or a benchmark's own."""
        return self.models or default

    def open(self, name: str) -> StagedModel:
        """A model of the zoo as it is, any other one with random weights.

        Raises:
            UserError: no such model, or no such size.
        """
        return load_model(
            name, size=parse_size(self.size), device=self.device, random_weights=not name.startswith("zoo/")
        )

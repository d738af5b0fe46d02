"""From a detector's prediction back to the features of its decoder."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from backsight.core import Layout
from backsight.inverses.base import Inverse, Moments

SMALLEST = 1e-3
"""The least standard deviation that a number is divided by."""


class PredictionMLP(Inverse):
    """DETR's prediction inverse: a small network on (class distribution, box), for each query by itself.

    With ``onehot`` (the paper's OH) the distribution is replaced by the one-hot vector of its likeliest class, so the
    uncertainty between classes is thrown away; without, it is the full distribution (FD). Boxes stay in both. Where
    every class has a score of its own (sigmoid), there is no class "no object" to win: the vector is zero where no
    class is likelier than not. For the paper's sizes: 96 -> 512 -> 256 -> 256.
    """

    muon: ClassVar[bool] = False  # it reads so few tokens that a step of Muon would cost three of Adam

    def __init__(self, source: Layout, target: Layout, *, onehot: bool = False) -> None:
        super().__init__(source, target)
        if not source.classes:
            raise ValueError(f"an inverse of predictions needs class logits and boxes, not {source}")
        self.expect_same("tokens")
        self.onehot: bool = onehot
        width = target.width
        self.fc1: nn.Linear = nn.Linear(source.width, 2 * width)
        self.fc2: nn.Linear = nn.Linear(2 * width, width)
        self.fc3: nn.Linear = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """``B Q (C + 4)`` -> ``B Q D``."""
        return self.fc3(self.fc2(self.fc1(self.known(features)).relu()).relu())

    def classes(self, logits: Tensor) -> Tensor:
        """Logits ``B Q C`` -> the class distribution that the inverse reads."""
        if not self.onehot:
            return super().classes(logits)
        likeliest = nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        return likeliest * (logits > 0) if self.source.scores == "sigmoid" else likeliest

    def moments(self) -> Moments:
        """The spread of what it reads, and of the features of the decoder."""
        return Moments(reads=self.known)

    @torch.no_grad()
    def begin(self, moments: Moments) -> None:
        """Let the first layer begin as if it read numbers of mean 0 and variance 1 (most classes are nearly never
        likely), and the last one with the mean and the spread of the features."""
        read, given = moments.source, moments.target
        self.fc1.weight.div_(read.std + SMALLEST)
        self.fc1.bias.sub_(self.fc1.weight @ read.mean)
        self.fc3.weight.mul_(given.std[:, None])
        self.fc3.bias.mul_(given.std).add_(given.mean)

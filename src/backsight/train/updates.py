"""How a loss becomes a change of weights: each network has its own optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

CLIP = 1.0
"""The largest norm of a network's gradient."""


class Updates:
    """One Adam for every network (paper, section 4.1), its gradient clipped.

    Args:
        networks, learning_rates: by name.
    """

    def __init__(self, networks: Mapping[str, nn.Module], learning_rates: Mapping[str, float]) -> None:
        self.networks, self.learning_rates = networks, learning_rates
        self.optimisers = {
            name: torch.optim.Adam(network.parameters(), lr=learning_rates[name]) for name, network in networks.items()
        }

    def apply(self, name: str, loss: Tensor, factor: float) -> None:
        """One step of the network ``name`` down its ``loss``, at ``factor`` times its learning rate."""
        optimiser = self.optimisers[name]
        for group in optimiser.param_groups:
            group["lr"] = self.learning_rates[name] * factor
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.networks[name].parameters(), CLIP)
        optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of every optimiser, by the name of its network."""
        return {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where :meth:`state_dict` was read."""
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state[name])

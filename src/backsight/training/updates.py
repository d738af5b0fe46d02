"""How a loss becomes a change of weights: each network has its own optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backsight.training.processes import Processes

CLIP = 1.0
"""The largest norm of a network's gradient."""


class Updates:
    """One Adam for every network (paper, section 4.1), its gradient clipped.

    Args:
        networks, learning_rates: by name.
        covers: the name of a loss -> the networks that one step down it changes.
        clips: the largest norm of a network's gradient, where it is not :data:`CLIP`.
        processes: those that share the run, each with its part of every loss: their gradients are added up.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        learning_rates: Mapping[str, float],
        covers: Mapping[str, Sequence[str]],
        clips: Mapping[str, float],
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes or Processes()
        self.networks, self.learning_rates, self.covers, self.clips = networks, learning_rates, covers, clips
        self.optimisers = {
            name: torch.optim.Adam(network.parameters(), lr=learning_rates[name], fused=True)
            for name, network in networks.items()
        }

    def apply(self, name: str, loss: Tensor, factor: float, *, last: bool = True) -> None:
        """One step of the networks that the loss ``name`` covers, each at ``factor`` times its learning rate.

        If it is not the ``last`` piece of its batch, its gradient is only added to those of the others.
        """
        covered = self.covers[name]
        if not covered:
            return
        loss.backward()
        if not last:
            return
        for network in covered:
            self.step(network, factor)
            self.optimisers[network].zero_grad(set_to_none=True)  # so that one loss at a time has gradients

    def step(self, name: str, factor: float) -> None:
        """Change the weights of ``name`` by their gradient, clipped, at ``factor`` times its learning rate.

        A gradient that is not finite changes nothing: the network keeps its last good weights.
        """
        optimiser: Any = self.optimisers[name]
        self.processes.add_gradients(self.networks[name].parameters())
        for group in optimiser.param_groups:
            group["lr"] = self.learning_rates[name] * factor
        gradients = [each.grad for each in self.networks[name].parameters() if each.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # Fused kernels divide the gradient by the one and look at the other on their way: no pass of its own to clip,
        # and nobody waits for the norm.
        optimiser.grad_scale = (norm / self.clips.get(name, CLIP)).clamp(min=1.0)
        optimiser.found_inf = (~norm.isfinite()).float()
        optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of every optimiser, by the name of its network."""
        return {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where :meth:`state_dict` was read."""
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state[name])
            _lay_out(optimiser)


def _lay_out(optimiser: torch.optim.Optimizer) -> None:
    """Let the moments lie in memory as the weights do: they may come from a machine that lays them out otherwise, and
    a fused kernel goes through both number by number, whatever their strides say."""
    for weight, state in optimiser.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight).copy_(value)

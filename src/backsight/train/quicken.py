"""What makes the networks of a run quick on a device. It changes how their numbers lie in memory, and no number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from backsight.inverses import Inverse

Convolution = nn.Conv2d | nn.ConvTranspose2d


def arrange_memory(networks: Iterable[nn.Module], device: torch.device) -> None:
    """Put the channels of convolutions last in memory where that is quicker; the maps between them follow.

    On a GPU that is everywhere: its matrix units read them so. A CPU gains where the map is larger than the weights
    (the wide, late layers on the way to an image) and loses where the weights are larger. To be called before there is
    an optimiser: its moments lie as the weights do.
    """
    for network in networks:
        if device.type == "cuda":
            network.to(memory_format=torch.channels_last)
        elif isinstance(network, Inverse):
            for layer, entries in map_sizes(network).items():
                if entries > layer.weight.numel():
                    layer.to(memory_format=torch.channels_last)


def map_sizes(network: Inverse) -> dict[Convolution, int]:
    """The numbers in the map of one image that enters each convolution, found without computing anything."""
    layers = [layer for layer in network.modules() if isinstance(layer, Convolution)]
    if not layers:
        return {}
    found: dict[Convolution, int] = {}

    def entering(layer: Any, maps: tuple[Tensor]) -> None:
        found[layer] = maps[0][0].numel()

    hooks = [layer.register_forward_pre_hook(entering) for layer in layers]
    training = network.training
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            network.eval()(torch.empty(1, network.source.tokens, network.source.width))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return found

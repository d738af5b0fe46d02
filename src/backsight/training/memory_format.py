"""What makes a step quicker and not different: the memory format of convolutions, biases that need no gradient."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from backsight.inverses import Inverse

Convolution = nn.Conv2d | nn.ConvTranspose2d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def freeze_biases(networks: Iterable[nn.Module]) -> None:
    """Leave out the gradients of biases that a BatchNorm takes away again: they are zero but for rounding.

    The mean that it subtracts holds the bias. (One in evaluation mode, as in a forward model that is trained too,
    subtracts another mean.) oneDNN finds the gradient of a transposed convolution's bias by computing that of its
    weights once more.
    """
    for network in networks:
        for sequence in network.modules():
            if isinstance(sequence, nn.Sequential):
                for layer, norm in pairwise(sequence):
                    known = isinstance(layer, Convolution) and isinstance(norm, BatchNorm)
                    if known and norm.training and layer.bias is not None:
                        layer.bias.requires_grad_(False)


def choose_memory_format(networks: Iterable[nn.Module], device: torch.device) -> None:
    """Put the channels of convolutions last in memory where that is quicker; the maps between them follow.

    On a GPU that is everywhere: its matrix units read them so. A CPU gains where the map is larger than the weights
    (the wide, late layers on the way to an image) and loses where the weights are larger. To be called before there is
    an optimiser: its moments lie as the weights do.
    """
    for network in networks:
        for layer in _wanting_channels_last(network, device):
            layer.to(memory_format=torch.channels_last)


def _wanting_channels_last(network: nn.Module, device: torch.device) -> list[Convolution]:
    if device.type == "cuda":  # layer by layer: a buffer of five dimensions has no such order
        return [layer for layer in network.modules() if isinstance(layer, Convolution)]
    sizes = map_sizes(network) if device.type == "cpu" and isinstance(network, Inverse) else {}
    return [layer for layer, entries in sizes.items() if entries > layer.weight.numel()]


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

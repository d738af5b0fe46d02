"""What makes a step quicker and not different: frozen biases, the memory format of convolutions, compiled parts.

``torch.compile`` takes the parts of a step that are always the same, the blocks of the forward model and the inverses,
each for one number of images, that of a whole batch. A smaller one, at the end of an epoch, and all evaluation run as
they always do, so nothing is ever compiled again. A part that cannot be compiled stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from backsight.core import Key
from backsight.devices import autocast, unchanged
from backsight.engine import StagedModel
from backsight.inverses import Inverse
from backsight.tasks import Task
from backsight.validation import first_line

logger: logging.Logger = logging.getLogger(__name__)

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


# ---- compiled parts

Choice = Literal["auto", "on", "off"]


class Compiled:
    """What calls a module, compiled for batches of ``size`` images in training; any other call goes to the original.

    A call that the compiler takes for another than the one that was tried (as where its input needs a gradient) is
    compiled once more; if that fails, the original takes over from there.

    Args:
        module: whose mode counts, and whose name is said.
        call: its own forward, or what several processes wrap it in.
        size: images.
    """

    def __init__(self, module: nn.Module, call: Callable[..., Any], size: int) -> None:
        self.original: Callable[..., Any] = call
        self.compiled: Callable[..., Any] = torch.compile(call, dynamic=False)
        self.module: nn.Module = module
        self.size: int = size
        self.trained: bool = module.training
        self.tried = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's own forward gives."""
        first = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
        usual = first is not None and len(first) == self.size and torch.is_grad_enabled()
        if not usual or self.module.training != self.trained:
            return self.original(*args, **kwargs)
        try:
            return self.compiled(*args, **kwargs)
        except Exception as error:
            from torch._dynamo.exc import TorchDynamoException

            if not (self.tried and isinstance(error, TorchDynamoException)):
                raise
            logger.warning("torch.compile: a %s runs as it is (%s)", type(self.module).__name__, first_line(error))
            self.compiled = self.original
            return self.original(*args, **kwargs)


def compile_task(task: Task, choice: Choice, size: int, precision: str) -> list[str]:
    """Compile what a step of ``task`` on ``size`` images consists of; ``auto`` does so on a GPU alone, where it pays.

    Of several processes each compiles for the ``size`` of its own part of a batch, and with what sums the gradients in
    it, so that they are still summed while others are computed. Copies of the forward model that are trained with the
    inverses run as they are.

    Returns:
        The names of the parts that are compiled now.
    """
    model = task.model
    if choice == "off" or (choice == "auto" and model.device.type != "cuda"):
        return []
    images = torch.zeros(size, 3, *model.pixels.size, device=model.device)
    inverses = {key: network for key, network in task.networks.items() if isinstance(network, Inverse)}
    # The features themselves: the compiler minds how they lie in memory.
    features = cache(lambda: model.features(images, list(dict.fromkeys(key.stage for key in inverses))))
    done = [str(key) for key, network in inverses.items() if _compile_inverse(task, key, network, features, precision)]
    if len(inverses) == len(task.networks):  # else copies of the forward model are trained, not itself
        blocks = list(repeated_blocks(model))
        for block in blocks:
            block.forward = Compiled(block, block.forward, size)
        if _tried("forward model", blocks, lambda: model.features(images, model.stages), precision):
            for block in blocks:
                block.forward.tried = True  # pyright: ignore[reportFunctionMemberAccess]
            return [*done, "forward model"]
        for block in blocks:
            block.__dict__.pop("forward", None)
    return done


def _compile_inverse(task: Task, key: Key, network: Inverse, features: Callable[[], Any], precision: str) -> bool:
    """Compile the inverse of ``key``, if an attempt passes, which no other process takes part in."""
    size = len(features()[key.stage])
    alone = Compiled(network, network, size)
    if not _tried(str(key), [network], lambda: _go_back(alone(features()[key.stage].float()), network), precision):
        return False
    call = task.modules[key]
    task.modules[key] = alone if call is network else Compiled(network, call, size)
    task.modules[key].tried = True  # pyright: ignore[reportFunctionMemberAccess]
    return True


def _tried(name: str, modules: list[nn.Module], attempt: Callable[[], object], precision: str) -> bool:
    """Whether an ``attempt`` passes; if not, it is said. Statistics, gradients and generators stay as they were."""
    device = next((weight.device for module in modules for weight in module.parameters()), torch.device("cpu"))
    try:
        with unchanged(modules, device), torch.enable_grad(), autocast(precision, device):
            attempt()
        return bool(modules)
    except Exception as error:  # a compiler meets what it cannot do with exceptions of every type
        logger.warning("torch.compile: '%s' runs as it is (%s)", name, first_line(error))
        return False


def _go_back(output: Tensor, network: nn.Module) -> None:
    try:
        output.float().square().mean().backward()
    finally:  # what was computed before a failure would be added to the first step's
        network.zero_grad(set_to_none=True)


def repeated_blocks(model: StagedModel) -> Iterator[nn.Module]:
    """The members of the forward model's lists of modules, the outermost ones in which no site lies."""
    paths = {site.path for name in model.names for site in model.sites(name)}
    taken: list[str] = []
    for path, module in model.module.named_modules():
        parent = model.module.get_submodule(path.rpartition(".")[0])
        listed = isinstance(parent, nn.ModuleList | nn.Sequential)
        holds_site = any(each.startswith(f"{path}.") for each in paths)
        inside = any(path.startswith(f"{each}.") for each in taken)
        if path and listed and not holds_site and not inside and any(True for _ in module.parameters()):
            taken.append(path)
            yield module

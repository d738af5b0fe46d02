"""``torch.compile`` for the parts of a step that are always the same: the blocks of the forward model, the inverses.

Each part is compiled for one number of images, that of a whole batch. A smaller one, at the end of an epoch, and all
evaluation run as they always do, so nothing is ever compiled again. A part that cannot be compiled stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backsight.devices import autocast
from backsight.inverses import Inverse
from backsight.staging import StagedModel
from backsight.tasks import Task

logger = logging.getLogger(__name__)

Choice = Literal["auto", "on", "off"]


class Compiled:
    """A module's forward, compiled for batches of ``size`` images in training; any other call goes to the original."""

    def __init__(self, module: nn.Module, size: int, *, trained: bool) -> None:
        self.original: Callable[..., Any] = module.forward
        self.quick: Callable[..., Any] = torch.compile(self.original, dynamic=False)
        self.module, self.size, self.trained = module, size, trained

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's own forward gives."""
        first = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
        usual = first is not None and len(first) == self.size and torch.is_grad_enabled()
        forward = self.quick if usual and self.module.training == self.trained else self.original
        return forward(*args, **kwargs)


def compile_task(task: Task, choice: Choice, size: int, precision: str) -> list[str]:
    """Compile what a step of ``task`` on ``size`` images consists of; ``auto`` does so on a GPU alone, where it pays.

    Returns:
        The names of the parts that are compiled now.
    """
    device = task.model.device
    if choice == "off" or (choice == "auto" and device.type != "cuda"):
        return []
    parts: dict[str, tuple[list[nn.Module], Callable[[], object]]] = {
        name: ([network], lambda network=network: _try_inverse(network, size, device))
        for name, network in task.networks.items()
        if isinstance(network, Inverse)
    }
    blocks = list(repeated_blocks(task.model))
    pictures = torch.zeros(size, 3, *task.model.pixels.size, device=device)
    parts["forward model"] = (blocks, lambda: task.model.features(pictures, task.model.stages))
    return [name for name, (modules, attempt) in parts.items() if _compile(name, modules, attempt, size, precision)]


def _compile(name: str, modules: list[nn.Module], attempt: Callable[[], object], size: int, precision: str) -> bool:
    """Compile ``modules`` and see whether an ``attempt`` passes; if not, put everything back and say so."""
    statistics = {buffer: buffer.clone() for module in modules for buffer in module.buffers()}
    devices = [0] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices), torch.enable_grad(), autocast(precision, _device_of(modules)):
            for module in modules:
                module.forward = Compiled(module, size, trained=module.training)
            attempt()
        return bool(modules)
    except Exception as error:  # a compiler meets what it cannot do with exceptions of every type
        for module in modules:
            module.__dict__.pop("forward", None)
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        logger.warning("torch.compile: '%s' runs as it is (%s)", name, reason)
        return False
    finally:
        with torch.no_grad():
            for buffer, value in statistics.items():
                buffer.copy_(value)


def _try_inverse(network: Inverse, size: int, device: torch.device) -> None:
    output = network(torch.randn(size, network.source.tokens, network.source.width, device=device))
    output.float().square().mean().backward()
    network.zero_grad(set_to_none=True)


def _device_of(modules: Iterable[nn.Module]) -> torch.device:
    return next((weight.device for module in modules for weight in module.parameters()), torch.device("cpu"))


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

"""``torch.compile`` for the parts of a step that are always the same: the blocks of the forward model, the inverses.

Each part is compiled for one number of images, that of a whole batch. A smaller one, at the end of an epoch, and all
evaluation run as they always do, so nothing is ever compiled again. A part that cannot be compiled stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backsight.devices import autocast
from backsight.engine import StagedModel
from backsight.inverses import Inverse
from backsight.tasks import Task
from backsight.training.norms import alone

logger = logging.getLogger(__name__)

Choice = Literal["auto", "on", "off"]


class Compiled:
    """A module's forward, compiled for batches of ``size`` images in training; any other call goes to the original.

    A call that the compiler takes for another than the one that was tried (as where its input needs a gradient) is
    compiled once more; if that fails, the original takes over from there.
    """

    def __init__(self, module: nn.Module, size: int, *, trained: bool) -> None:
        self.original: Callable[..., Any] = module.forward
        self.compiled: Callable[..., Any] = torch.compile(self.original, dynamic=False)
        self.module, self.size, self.trained = module, size, trained
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
            if not (self.tried and _of_the_compiler(error)):
                raise
            logger.warning("torch.compile: a %s runs as it is (%s)", type(self.module).__name__, _first_line(error))
            self.compiled = self.original
            return self.original(*args, **kwargs)


def compile_task(task: Task, choice: Choice, size: int, precision: str) -> list[str]:
    """Compile what a step of ``task`` on ``size`` images consists of; ``auto`` does so on a GPU alone, where it pays.

    Of several processes each compiles for the ``size`` of its own part of a batch. Copies of the forward model that are
    trained with the inverses run as they are.

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
    parts: dict[str, tuple[list[nn.Module], Callable[[], object]]] = {
        str(key): ([network], lambda key=key, network=network: _try_inverse(network, features()[key.stage].float()))
        for key, network in inverses.items()
    }
    if len(inverses) == len(task.networks):  # else copies of the forward model are trained, not itself
        parts["forward model"] = (list(repeated_blocks(model)), lambda: model.features(images, model.stages))
    return [name for name, (modules, attempt) in parts.items() if _compile(name, modules, attempt, size, precision)]


def _compile(name: str, modules: list[nn.Module], attempt: Callable[[], object], size: int, precision: str) -> bool:
    """Compile ``modules`` and see whether an ``attempt`` passes; if not, put everything back and say so."""
    compiled: list[Compiled] = []
    statistics = {buffer: buffer.clone() for module in modules for buffer in module.buffers()}
    device = _device_of(modules)
    generators = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(generators), torch.enable_grad(), autocast(precision, device), alone(modules):
            for module in modules:
                module.forward = Compiled(module, size, trained=module.training)
                compiled.append(module.forward)
            attempt()
        for each in compiled:
            each.tried = True
        return bool(modules)
    except Exception as error:  # a compiler meets what it cannot do with exceptions of every type
        for module in modules:
            module.__dict__.pop("forward", None)
        logger.warning("torch.compile: '%s' runs as it is (%s)", name, _first_line(error))
        return False
    finally:
        with torch.no_grad():
            for buffer, value in statistics.items():
                buffer.copy_(value)


def _try_inverse(network: Inverse, features: Tensor) -> None:
    try:
        network(features).float().square().mean().backward()
    finally:  # what was computed before a failure would be added to the first step's
        network.zero_grad(set_to_none=True)


def _of_the_compiler(error: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


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

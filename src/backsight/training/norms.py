"""BatchNorm over the whole batch, where several processes have a part of it each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from backsight.training.distributed import Processes


class SharedBatchNorm(nn.Module):
    """What BatchNorm gives for the whole batch, on the part of it that this process has.

    torch's own ``SyncBatchNorm`` wants GPUs. The parameters and buffers are those of ``norm`` and have its names.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, processes: Processes) -> None:
        super().__init__()
        self.processes, self.eps, self.momentum = processes, norm.eps, norm.momentum
        for name, parameter in norm.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.train(norm.training)
        # A compiled graph cannot hold what processes tell each other.
        self._eagerly: Callable[..., Any] = torch.compiler.disable(fn=self._normalised)

    def forward(self, values: Tensor) -> Tensor:
        """``B D ...`` -> the same shape, every channel of mean 0 and variance 1, then scaled and shifted."""
        weights: dict[str, Any] = {name: getattr(self, name, None) for name in ("weight", "bias")}
        mean, variance = (getattr(self, name, None) for name in ("running_mean", "running_var"))
        if not self.training and mean is not None:
            return nn.functional.batch_norm(values, mean, variance, **weights, eps=self.eps)
        return self._eagerly(values, **weights)

    def _normalised(self, values: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        with torch.autocast(values.device.type, enabled=False):
            exact = values.float()
            mean, variance, count = self._statistics(exact)
            self._remember(mean.detach(), variance.detach(), count)
            shape = (1, -1, *[1] * (values.dim() - 2))
            scale = (variance + self.eps).rsqrt() * (1 if weight is None else weight)
            shift = (0 if bias is None else bias) - mean * scale
            return (exact * scale.view(shape) + shift.view(shape)).to(values.dtype)

    def _statistics(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance (``D``) of every channel in the whole batch, and over how many values they go.

        Every process writes its own into its row of a table that is then added up: means and squares about them, since
        a difference of large sums would lose the digits that one process alone keeps.
        """
        axes = [axis for axis in range(values.dim()) if axis != 1]
        number = 0 if self.processes.standing_in else values.numel() // values.shape[1]
        variance, mean = torch.var_mean(values, axes, correction=0)
        own = torch.stack([torch.full_like(mean, number), mean, variance])
        rows = [own if rank == self.processes.rank else torch.zeros_like(own) for rank in range(self.processes.count)]
        counts, means, variances = _Added.apply(torch.stack(rows)).unbind(1)
        share = counts / counts.sum(0).clamp(min=1)
        mean = (share * means).sum(0)
        return mean, (share * (variances + (means - mean).square())).sum(0), counts[:, 0].sum().detach()

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, as torch does: the variance is that of a sample of ``count`` values."""
        running_mean, running_variance, seen = (
            getattr(self, name, None) for name in ("running_mean", "running_var", "num_batches_tracked")
        )
        if running_mean is None or running_variance is None or seen is None:
            return
        seen += 1
        step = 1 / seen if self.momentum is None else self.momentum
        running_mean += step * (mean - running_mean)
        running_variance += step * (variance * count / (count - 1).clamp(min=1) - running_variance)


class _Added(torch.autograd.Function):
    """A sum over all processes, a row of the table for each; the gradient of each part is the sum of the gradients that
    all have of it."""

    @staticmethod
    def forward(ctx: Any, table: Tensor) -> Tensor:
        ctx.together = len(table) > 1
        total = table.clone()
        if ctx.together:
            torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        if ctx.together:
            torch.distributed.all_reduce(total)
        return total


def share_statistics(network: nn.Module, processes: Processes) -> None:
    """Let every BatchNorm of ``network`` see the whole batch, in place; nothing changes for one process alone."""
    if processes.count == 1:
        return
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) and type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
                setattr(parent, name, SharedBatchNorm(child, processes))


@contextmanager
def alone(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Ask no other process meanwhile: what is tried here may fail, and they would wait for it."""
    norms = [each for network in networks for each in network.modules() if isinstance(each, SharedBatchNorm)]
    shared = [norm.processes for norm in norms]
    try:
        for norm in norms:
            norm.processes = Processes()
        yield
    finally:
        for norm, processes in zip(norms, shared, strict=True):
            norm.processes = processes

"""How networks are updated: by Muon for matrices and Adam for the rest, or in the paper's recipe by Adam alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backsight.inverses import Inverse
from backsight.options import Recipe
from backsight.training.kernels import BatchNorm

CLIP = 1.0
"""The largest norm of a network's gradient, where its task sets no other (the authors' choice)."""
WARM_UP = 20
"""Batches over which the fast recipe's rates rise to their full value, or a tenth of the run if that is sooner."""
FLOOR = 0.01
"""The share of them that is left at the end."""
MOMENTUM = 0.95
SMALLEST = 8
"""Matrices with fewer rows or columns are left to Adam."""


def schedule(recipe: Recipe, step: int, share: float) -> float:
    """The factor on every learning rate: 1 in the paper's recipe; a short linear warm-up, then a cosine down to 1 %.

    ``step`` is the number of this one, from 0; ``share`` how much of the run is over, of its steps or minutes, 0 to 1.
    """
    if recipe == "paper":
        return 1.0
    rise = min(1.0, max((step + 1) / (WARM_UP + 1), 10 * share))
    return rise * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * share)))


class Updates:
    """The optimisers of one network; Muon's are the matrices and flattened kernels of an inverse that wants it.

    ``clip`` is the norm that its gradients are clipped to, all of them together.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, learning_rate: float, clip: float = CLIP) -> None:
        self.learning_rate: float = learning_rate
        self.clip: float = clip
        fast = recipe != "paper" and isinstance(network, Inverse)
        norms = [each for each in network.modules() if isinstance(each, BatchNorm | nn.SyncBatchNorm)] if fast else []
        self.new_norms: list[BatchNorm | nn.SyncBatchNorm] = [each for each in norms if not each.num_batches_tracked]
        wanted = network.named_parameters() if fast and network.muon else ()
        matrices = {name: weight for name, weight in wanted if _is_matrix(name, weight)}
        others = [weight for name, weight in network.named_parameters() if name not in matrices]
        self.optimisers: list[torch.optim.Optimizer] = []
        if others:
            self.optimisers.append(torch.optim.Adam(others, lr=learning_rate, fused=True))
        if matrices:
            self.optimisers.append(Muon(matrices.values(), lr=learning_rate))

    def step(self, factor: float) -> None:
        """Change the weights by ``factor`` times the learning rate, and drop the gradients.

        Gradients that are not finite change nothing: the network keeps its last good weights.
        """
        while self.new_norms:
            _forget_start(self.new_norms.pop())
        weights = [weight for each in self.optimisers for group in each.param_groups for weight in group["params"]]
        norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.learning_rate * factor
            # Fused kernels divide the gradient by the one and look at the other on their way: no pass of its own to
            # clip, and nobody waits for the norm. Muon does the same.
            optimiser.grad_scale = (norm / self.clip).clamp(min=1.0)  # pyright: ignore[reportAttributeAccessIssue]
            optimiser.found_inf = (~norm.isfinite()).float()  # pyright: ignore[reportAttributeAccessIssue]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of them."""
        return {type(each).__name__: each.state_dict() for each in self.optimisers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what :meth:`state_dict` gave."""
        for optimiser in self.optimisers:
            optimiser.load_state_dict(state[type(optimiser).__name__])
            _match_strides(optimiser)
        if any(optimiser.state for optimiser in self.optimisers):  # not so in the checkpoint before the first batch
            self.new_norms = []


@torch.no_grad()
def _forget_start(norm: BatchNorm | nn.SyncBatchNorm) -> None:
    """Let running statistics be those of the first batch alone: after a few dozen batches a network would still be
    evaluated by the zeros and ones that they start from (a tenth is replaced in each)."""
    left = (1 - (norm.momentum or 0)) ** int(norm.num_batches_tracked or 0)
    if norm.running_mean is not None and norm.running_var is not None and left < 1:
        norm.running_mean.div_(1 - left)
        norm.running_var.sub_(left).div_(1 - left).clamp_(min=0)


def _is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a weight maps features to features: position embeddings, tables of places, do not."""
    return weight.dim() >= 2 and min(weight.flatten(1).shape) >= SMALLEST and "position" not in name


def _match_strides(optimiser: torch.optim.Optimizer) -> None:
    """Let the moments lie in memory as the weights do: they may come from a machine that lays them out otherwise, and
    a fused kernel goes through both number by number, whatever their strides say."""
    for weight, state in optimiser.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight).copy_(value)


# ---- Muon


class Muon(torch.optim.Optimizer):
    """Momentum whose every step is orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), on
    matrices and on kernels, flattened from their second dimension on; ``torch.optim.Muon`` takes matrices alone.

    Adam steps along few directions of a matrix that many gradients agree on; an orthogonal step is as long along all
    of them, so that what little of a picture is in most of them (colour) is learned with the rest. The largest singular
    value of a step is ``2 lr sqrt(max(1, rows / columns))``, and as many times more as the root of a kernel's places,
    which overlap: the same for every width, so that the rate that is best for one is for others (docs/log.md).

    ``grad_scale`` and ``found_inf`` are as for Adam's fused kernel: what gradients are divided by, and whether to leave
    all as it is.
    """

    grad_scale: Tensor
    found_inf: Tensor

    def __init__(self, weights: Iterable[Tensor], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Change every weight that has a gradient."""
        del closure
        good = self.found_inf == 0
        scale = torch.where(good, self.grad_scale, 1.0)
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(tuple(weight.shape), []).append(weight)
            for shape, weights in alike.items():
                ahead = [self._ahead(weight, good, scale) for weight in weights]
                rows, columns = ahead[0].shape
                length = 2 * group["lr"] * math.sqrt(max(1, rows / columns) * math.prod(shape[2:])) * good
                for weight, update in zip(weights, orthogonalised(torch.stack(ahead), length), strict=True):
                    weight.sub_(update.reshape(shape))

    def _ahead(self, weight: Tensor, good: Tensor, scale: Tensor) -> Tensor:
        """The gradient with the momentum, which it changes, as a matrix (Nesterov's). The gradient's memory is used."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        assert weight.grad is not None
        gradient = weight.grad.masked_fill_(~good, 0).div_(scale)
        state["momentum"].lerp_(gradient, (1 - MOMENTUM) * good)
        return gradient.lerp_(state["momentum"], MOMENTUM).flatten(1)


BLOCK = 256
"""Rows (or columns, if they are fewer) that are orthogonalised together."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of a polynomial that brings singular values between 0 and 1 to about 1 (.7 to 1.2) in five steps."""
ITERATIONS = 5
WIDE = 1.5
"""From this proportion on the products of the smaller square matrix are cheaper."""


def orthogonalised(matrices: Tensor, length: Tensor | float = 1.0) -> Tensor:
    """``G N M`` -> about ``length`` times ``U V^T`` of each one's singular value decomposition ``U S V^T``, by five
    Newton-Schulz iterations; of a large matrix, of every :data:`BLOCK` rows (or columns, if they are fewer) by
    themselves.

    Whole matrices of thousands of rows cost more on a CPU than the passes that give their gradients; blocks learn
    nearly as much in a step (Khaled et al. 2025, "MuonBP", arXiv 2510.16981; docs/log.md).
    """
    high = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if high else matrices
    group, rows, _ = x.shape
    blocks = math.ceil(rows / BLOCK)
    if rows % blocks:
        x = nn.functional.pad(x, (0, 0, 0, -rows % blocks))
    x = _orthogonalised(x.unflatten(1, (blocks, -1)).flatten(0, 1), length)
    x = x.unflatten(0, (group, blocks)).flatten(1, 2)[:, :rows]
    return x.mT if high else x


def _orthogonalised(x: Tensor, length: Tensor | float) -> Tensor:
    """The same of matrices that are no higher than wide, whole.

    Wide ones in single precision are iterated on by their Gram matrix, and are read twice only. A GPU
    computes in bf16, and on the matrices themselves: rounded to bf16 a Gram matrix has eigenvalues below 0, which the
    polynomial makes larger in every iteration.
    """
    a, b, c = COEFFICIENTS
    dtype = x.dtype
    if x.is_cuda:
        x = x.bfloat16()
    if x.dtype != torch.bfloat16 and x.shape[2] >= WIDE * x.shape[1]:
        gram = x @ x.mT
        norm = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt()[:, None, None] + 1e-7
        gram /= norm**2
        product: Tensor | None = None
        for left in range(ITERATIONS)[::-1]:
            step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            step.diagonal(dim1=1, dim2=2).add_(a)
            product = step if product is None else step @ product
            if left:
                gram = step @ gram @ step
        assert product is not None
        return (product * (length / norm)) @ x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(dtype) * length

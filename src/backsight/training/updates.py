"""How networks are updated: by Muon for matrices and Adam for the rest, or in the paper's recipe by Adam alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backsight.inverses import Inverse
from backsight.options import Recipe

CLIP = 1.0
"""The largest norm of a network's gradient, where its task sets no other (the authors' choice)."""
WARM_UP = 20
"""Batches over which the fast recipe's learning rates rise to their full value."""
FLOOR = 0.01
"""The share of them that is left at the end."""
MOMENTUM = 0.95
SMALLEST = 8
"""Matrices with fewer rows or columns are left to Adam."""


def schedule(recipe: Recipe, steps: int | None, step: int, share: float) -> float:
    """The factor on every learning rate: 1 in the paper's recipe; a short linear warm-up, then a cosine down to 1 %.

    ``steps`` are those of the run, where that is known; ``step`` is the number of this one, from 0; ``share`` how much
    of the run is over, 0 to 1.
    """
    if recipe == "paper":
        return 1.0
    warm_up = WARM_UP if steps is None else min(WARM_UP, steps // 10)
    rise = min(1.0, (step + 1) / (warm_up + 1))
    return rise * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * share)))


class Updates:
    """The optimisers of one network; Muon's are the matrices and flattened kernels of an inverse that wants it.

    ``clip`` is the norm that its gradients are clipped to, all of them together.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, learning_rate: float, clip: float = CLIP) -> None:
        self.learning_rate: float = learning_rate
        self.clip: float = clip
        fast = recipe != "paper" and isinstance(network, Inverse) and network.muon
        matrices = {name: weight for name, weight in network.named_parameters() if fast and _is_matrix(name, weight)}
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
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(tuple(weight.shape), []).append(weight)
            for shape, weights in alike.items():
                updates = orthogonalised(torch.stack([self._ahead(weight, good) for weight in weights]))
                rows, columns = updates.shape[1:]
                length = 2 * group["lr"] * math.sqrt(max(1, rows / columns) * math.prod(shape[2:]))
                for weight, update in zip(weights, torch.where(good, length * updates, 0.0), strict=True):
                    weight.sub_(update.reshape(shape))

    def _ahead(self, weight: Tensor, good: Tensor) -> Tensor:
        """The gradient with the momentum, which it changes, as a matrix (Nesterov's)."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        assert weight.grad is not None
        gradient = torch.where(good, weight.grad / self.grad_scale, state["momentum"])
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(state["momentum"], MOMENTUM).flatten(1)


COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of a polynomial that brings singular values between 0 and 1 to about 1 (.7 to 1.2) in five steps."""
ITERATIONS = 5
WIDE = 1.5
"""From this proportion on the products of the smaller square matrix are cheaper."""


def orthogonalised(matrices: Tensor) -> Tensor:
    """``G N M`` -> about ``U V^T`` of each one's singular value decomposition ``U S V^T``, by five Newton-Schulz
    iterations.

    Wide (or high) matrices in single precision are iterated on by their Gram matrix, and are read twice only. A GPU
    computes in bf16, and on the matrices themselves: rounded to bf16 a Gram matrix has eigenvalues below 0, which the
    polynomial makes larger in every iteration.
    """
    a, b, c = COEFFICIENTS
    high = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if high else matrices
    if x.is_cuda:
        x = x.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.dtype != torch.bfloat16 and x.shape[2] >= WIDE * x.shape[1]:
        gram = x @ x.mT
        product: Tensor | None = None
        for left in range(ITERATIONS)[::-1]:
            step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            step.diagonal(dim1=1, dim2=2).add_(a)
            product = step if product is None else step @ product
            if left:
                gram = step @ gram @ step
        x = product @ x if product is not None else x
    else:
        for _ in range(ITERATIONS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if high else x).to(matrices.dtype)

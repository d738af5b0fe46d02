"""One traced pass of a module of which nothing is known: what every submodule was given and answered, as shapes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from backsight.arrange import call_with, each_tensor, image_argument_of
from backsight.core import Pixels, UserError
from backsight.validation import first_line

BATCH = 2
"""Images in the pass: an axis of any other length is not the batch."""


@dataclass(frozen=True)
class Visit:
    """One call of a submodule: its place in the ``order`` in which calls end, what it was given, what it answered.

    Tensors are on torch's ``meta`` device: they have shapes and no values.
    """

    order: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


@dataclass
class ShapeTrace:
    """A pass over images of ``size`` (H, W): every submodule's ``visits`` by path; those of the model are at ``""``.

    ``queries`` is the number of a detector's object queries, which are on no grid, where its configuration says it."""

    size: tuple[int, int]
    queries: int | None = None
    visits: dict[str, list[Visit]] = field(default_factory=dict)

    @property
    def output(self) -> Any:
        """What the model answered."""
        return self.visits[""][-1].output


def trace_shapes(
    module: nn.Module,
    pixels: Pixels,
    arguments: Mapping[str, Any] | None = None,
    image_argument: str | None = None,
) -> ShapeTrace:
    """Run ``module`` once on random images and keep the shapes that its submodules saw.

    Raises:
        UserError: it cannot take images of this size.
    """
    found = ShapeTrace(pixels.size, getattr(getattr(module, "config", None), "num_queries", None))
    like = next((each for each in module.parameters() if each.is_floating_point()), torch.zeros(()))
    images = pixels.as_input(torch.rand(BATCH, 3, *pixels.size, generator=torch.Generator().manual_seed(0))).to(like)
    args, kwargs = call_with(images, arguments or {}, image_argument or image_argument_of(module))
    trained = module.training
    with ExitStack() as stack, torch.no_grad():
        stack.callback(module.train, trained)
        module.eval()
        for path, each in module.named_modules():
            hook = each.register_forward_hook(_noting(found, path), with_kwargs=True)
            stack.callback(hook.remove)
        try:
            module(*args, **kwargs)
        except Exception as error:
            size = f"{pixels.size[0]}x{pixels.size[1]}"
            raise UserError(
                f"a forward pass over images of {size} pixels fails: {first_line(error)}; give the size that it takes"
            ) from error
    return found


def _noting(found: ShapeTrace, path: str) -> Any:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        order = sum(map(len, found.visits.values()))
        visit = Visit(order, _shapes(args), _shapes(kwargs), _shapes(output))
        found.visits.setdefault(path, []).append(visit)

    return note


def _shapes(value: Any) -> Any:
    return each_tensor(value, _shape)


def _shape(value: Tensor) -> Tensor:
    shape: Any = torch.empty(value.shape, dtype=value.dtype, device="meta")
    shape.alike = value.shape[:1] == (BATCH,) and not value.is_meta and torch.equal(value[0], value[1])
    return shape


def depends_on_image(shape: Tensor) -> bool:
    """Whether a tensor of the pass differed between its two images; True where the pass had no values."""
    return not getattr(shape, "alike", False)


def fitting_patterns(shape: tuple[int, ...], size: tuple[int, int]) -> list[Any]:
    """The patterns that a tensor of ``shape`` may have on images of ``size``: a map has about their proportions."""
    if len(shape) < 4:
        return {2: ["b d"], 3: ["b n d"]}.get(len(shape), [])
    grids = {"b d h w": shape[2:], "b h w d": shape[1:3]} if len(shape) == 4 else {}
    return [pattern for pattern, (h, w) in grids.items() if abs(h * size[1] / size[0] - w) <= 1 + 0.1 * w]

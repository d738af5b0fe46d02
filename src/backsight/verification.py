"""Proof that a model's sites are where they claim to be.

Replaying a site unchanged proves little: a site that nothing reads would pass. So each site is checked four times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backsight.arrange import tensors_in
from backsight.core import Layout, UserError
from backsight.engine import RANDOM, StagedModel
from backsight.replay import Trace


@dataclass(frozen=True)
class SiteCheck:
    """What was found at one site. ``shape`` is ``N D``."""

    name: str
    shape: tuple[int, int]
    identity: bool
    edit_changes_output: bool
    gradient: bool
    row_by_row: bool

    @property
    def results(self) -> tuple[bool, bool, bool, bool]:
        """The four checks, in the order above."""
        return self.identity, self.edit_changes_output, self.gradient, self.row_by_row

    @property
    def passed(self) -> bool:
        """All four hold."""
        return all(self.results)


def verify(
    model: StagedModel, batch_size: int = 1, seed: int = 0, names: Sequence[str] | None = None
) -> Iterator[SiteCheck]:
    """Check every site of ``model``, or those of the stages and layers ``names``, on random images, one at a time.

    ``identity``: replaying the unchanged features gives the model's output bit for bit (this object's, in this process;
    others agree to rounding). ``edit_changes_output``: other features give another output. ``gradient``: the output's
    gradient with respect to the features is not zero. ``row_by_row``: of tokens on a grid, a change of one row
    or column of the image moves those that stand for it (True where there is no grid). Random weights are scrambled
    first, so that no head initialised with zeros hides anything. Where pictures are padded, so are these images.

    Raises:
        UserError: two passes over the same images differ, or the output does not depend on the images at all: then
            nothing can be said of the sites.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch_size, 3, *model.pixels.size, generator=generator).to(model.device)
    valid = _some_padding(images) if model.pixels.fit == "pad" else None
    if model.weights == RANDOM:
        scramble(model.module, generator)
    trace = model.run(images, valid=valid)
    if model.weights == RANDOM and not _depends_on_images(model, trace):
        measure_statistics(model.module, lambda: model.answer(images, ()))
        trace = model.run(images, valid=valid)
    expected = tensors(trace.output)
    _check_passes(model, trace)
    moved = _moved_tokens(model, images[:1])
    for name in model.names if names is None else names:
        features = trace[name]
        same = tensors(model.resume(name, features, trace).output)
        noise = torch.randn(features.shape, generator=generator).to(features.device)
        with torch.enable_grad():
            edited = (features + features.std() * noise).requires_grad_()
            changed = tensors(answer(model.resume(name, edited, trace).output))
            gradient = _gradient_reaches(edited, changed)
        yield SiteCheck(
            name,
            (features.shape[1], features.shape[2]),
            identity=all(map(torch.equal, same, expected)),
            edit_changes_output=not all(map(torch.equal, changed, tensors(answer(trace.output)))),
            gradient=gradient,
            row_by_row=moved[name],
        )


def _check_passes(model: StagedModel, trace: Trace) -> None:
    again = model.answer(trace.images, (), trace.valid)
    if not all(map(torch.equal, tensors(again.output), tensors(trace.output))):
        raise UserError(
            f"two passes of {model.name} over the same images differ: its forward draws random numbers (a mask, "
            "dropout outside of nn.Dropout), which has to be switched off before it can be staged"
        )
    if not _depends_on_images(model, trace):
        made = "with scrambled random weights, " if model.weights == RANDOM else ""
        raise UserError(
            f"{made}the output of {model.name} is the same for every image (a ReLU at its end may give 0 everywhere), "
            "so nothing can be said of its sites: verify it with trained weights"
        )


def _depends_on_images(model: StagedModel, trace: Trace) -> bool:
    """Whether the images of ``trace``, turned to their negatives, have another output."""
    other = model.answer(1 - trace.images, (), trace.valid)
    return not all(map(torch.equal, tensors(answer(other.output)), tensors(answer(trace.output))))


# ---- where tokens stand


ROUNDING = 1e-6
"""A change of tokens, in units of their length, that says nothing: deep in random weights an image may be lost."""
MOVED, MOST = 0.1, 0.7
"""A token has moved if its change is at least this share of the largest one: where tokens mix, others move too, but
hardly ten times as far. Of the tokens that stand for a changed part of the image, so many have to."""


@torch.no_grad()
def _moved_tokens(model: StagedModel, image: Tensor) -> dict[str, bool]:
    """By the name of each stage and layer, whether a change of one row of ``image`` (``1 3 H W``), as high as a token,
    and of one column moves the tokens that stand for it."""
    layouts = {name: model.layout(name) for name in model.names}
    before = model.features(image, model.names)
    moved = dict.fromkeys(layouts, True)
    for grid in dict.fromkeys(grid for layout in layouts.values() for grid in layout.grids if min(grid) > 2):
        (height, width), (h, w) = image.shape[2:], grid
        row, column = h // 3, 2 * w // 3
        changed = image.repeat(2, 1, 1, 1)
        for part in (
            changed[0, :, row * height // h : (row + 1) * height // h],
            changed[1, :, :, column * width // w : (column + 1) * width // w],
        ):
            part.copy_(1 - part)
        names = [name for name, layout in layouts.items() if grid in layout.grids]
        after = model.features(changed, names)
        for name in names:
            change = _change(before[name], after[name], layouts[name], grid)
            far = change >= MOVED * change.amax((1, 2), keepdim=True)
            shares = far[0, row].float().mean(), far[1, :, column].float().mean()
            moved[name] &= bool(min(shares) >= MOST or change.max() < ROUNDING)
    return moved


def _change(before: Tensor, after: Tensor, layout: Layout, grid: tuple[int, int]) -> Tensor:
    """How far each token of ``grid`` has moved, in units of its own length: ``2 h w``."""
    start = layout.prefix + sum(h * w for h, w in layout.grids[: layout.grids.index(grid)])
    part = slice(start, start + grid[0] * grid[1])
    one, other = before[:, part].float(), after[:, part].float()
    length = one.norm(dim=2) + one.norm(dim=2).mean()
    return ((other - one).norm(dim=2) / length).nan_to_num().unflatten(1, grid)


def _some_padding(images: Tensor) -> Tensor:
    """A mask of valid pixels ``B H W``: images of even number lack a quarter of their height, the others of width."""
    valid = torch.ones_like(images[:, 0], dtype=torch.bool)
    valid[::2, 3 * valid.shape[1] // 4 :] = False
    valid[1::2, :, 3 * valid.shape[2] // 4 :] = False
    return valid


def _gradient_reaches(features: Tensor, outputs: list[Tensor]) -> bool:
    energy = torch.stack([each.float().square().sum() for each in outputs]).sum()
    if not energy.requires_grad:  # nothing in the output comes from the features
        return False
    (slope,) = torch.autograd.grad(energy, features, allow_unused=True)
    return slope is not None and bool(slope.abs().max() > 0)


def answer(output: Any) -> Any:
    """What a model says, without the features that its library hands out beside: an edit that reaches only these proves
    nothing."""
    said = [output[name] for name in ("logits", "pred_boxes") if name in output] if isinstance(output, dict) else []
    return said or output


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors in a model's output, in order."""
    return [each for each in tensors_in(output) if each.is_floating_point()]


def scramble(module: nn.Module, generator: torch.Generator, spread: float = 0.02) -> None:
    """Add noise to every parameter, and draw new statistics for every BatchNorm, in place."""
    with torch.no_grad():
        for parameter in filter(Tensor.is_floating_point, module.parameters()):
            parameter += spread * torch.randn(parameter.shape, generator=generator).to(parameter)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer += spread * torch.randn(buffer.shape, generator=generator).to(buffer)
            if name.endswith("running_var"):
                buffer *= 1 + 0.1 * torch.rand(buffer.shape, generator=generator).to(buffer)


def measure_statistics(module: nn.Module, forward: Callable[[], object]) -> None:
    """Give every BatchNorm in ``module`` the statistics of what reaches it in the pass ``forward``, in place.

    With those that a network is made with, what deep layers make of two images may differ by no more than rounding.
    """

    def measure(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        axes = [axis for axis in range(inputs[0].dim()) if axis != 1]
        norm.running_mean.copy_(inputs[0].mean(axes))
        norm.running_var.copy_(inputs[0].var(axes))

    norms = [each for each in module.modules() if getattr(each, "running_mean", None) is not None]
    hooks = [each.register_forward_pre_hook(measure) for each in norms]
    with torch.no_grad():
        forward()
    for hook in hooks:
        hook.remove()

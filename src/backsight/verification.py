"""Proof that a model's sites are where they claim to be.

Replaying a site unchanged proves little: a site that nothing reads would pass. So each site is checked three times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backsight.engine import RANDOM, StagedModel


@dataclass(frozen=True)
class SiteCheck:
    """What was found at one site. ``shape`` is ``N D``."""

    name: str
    shape: tuple[int, int]
    identity: bool
    edit_changes_output: bool
    gradient: bool

    @property
    def results(self) -> tuple[bool, bool, bool]:
        """The three checks, in the order above."""
        return self.identity, self.edit_changes_output, self.gradient

    @property
    def passed(self) -> bool:
        """All three hold."""
        return all(self.results)


def verify(model: StagedModel, batch_size: int = 1, seed: int = 0) -> Iterator[SiteCheck]:
    """Check every site of ``model`` on random images, one result at a time.

    ``identity``: replaying the unchanged features gives the model's output bit for bit (this object's, in this process;
    others agree to rounding). ``edit_changes_output``: other features give another output. ``gradient``: the output's
    gradient with respect to the features is not zero. Random weights are scrambled first, so that no head initialised
    with zeros hides anything. Where pictures are padded, so are these images.
    """
    generator = torch.Generator().manual_seed(seed)
    if model.weights == RANDOM:
        scramble(model.module, generator)
    images = torch.rand(batch_size, 3, *model.pixels.size, generator=generator).to(model.device)
    trace = model.run(images, valid=_some_padding(images) if model.pixels.fit == "pad" else None)
    expected = tensors(trace.output)
    for name in model.names:
        features = trace[name]
        same = tensors(model.resume(name, features, trace).output)
        noise = torch.randn(features.shape, generator=generator).to(features.device)
        edited = (features + features.std() * noise).requires_grad_()
        changed = tensors(answer(model.resume(name, edited, trace).output))
        yield SiteCheck(
            name,
            (features.shape[1], features.shape[2]),
            identity=all(map(torch.equal, same, expected)),
            edit_changes_output=not all(map(torch.equal, changed, tensors(answer(trace.output)))),
            gradient=_gradient_reaches(edited, changed),
        )


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
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    return [each for item in output for each in tensors(item)] if isinstance(output, list | tuple) else []


def scramble(module: nn.Module, generator: torch.Generator, spread: float = 0.02) -> None:
    """Add noise to every parameter, and draw new statistics for every BatchNorm, in place."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator).to(parameter)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer += spread * torch.randn(buffer.shape, generator=generator).to(buffer)
            if name.endswith("running_var"):
                buffer *= 1 + 0.1 * torch.rand(buffer.shape, generator=generator).to(buffer)

"""The authors' inverses from a grid of tokens to the image: six classes, told apart by their kernels and norms.

All end with a sigmoid: pixels in [0, 1], as ours. (Their training normalises that before it compares, as ours does.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from backsight.authors.states import Published
from backsight.core import Layout, UserError
from backsight.inverses import Inverse
from backsight.inverses.base import times_finer

STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
EPSILON = 1e-5
"""What torch's BatchNorm adds to the variance."""


@dataclass(frozen=True)
class Convolutions:
    """One of these networks in our words: ours by name and options, its tensors, whose names are whose."""

    inverse: str
    options: Mapping[str, Any]
    published: Published
    names: Callable[[Inverse], Mapping[str, str]]
    variant: str


@dataclass(frozen=True)
class Layer:
    """A transposed convolution: its name, that of a BatchNorm after it, whether there is one, its kernel and its width
    (channels out)."""

    name: str
    norm: str
    has_norm: bool
    kernel: int
    width: int


class Kind(NamedTuple):
    """Our inverse, its options, the variant's name in a chain, whether ours has a BatchNorm after all but the last."""

    inverse: str
    options: dict[str, Any]
    variant: str
    normed: bool


def read_convolutions(published: Published, source: Layout, target: Layout) -> Convolutions:
    """Which of these networks ``published`` is, for tokens of ``source`` and images of ``target``.

    A BatchNorm where ours has none is folded into the convolution before it, which computes the same.

    Raises:
        UserError: a tensor is missing, or the layers are those of none of them.
    """
    layers = _layers(published)
    kind = _kind(published, layers, source, target)
    normed = layers[:-1] if kind.normed else []
    for layer in layers:
        if layer.has_norm and layer not in normed:
            published = fold_norm(published, layer.name, layer.norm)
    if kind.inverse == "local":
        published = _as_plain_convolutions(published, layers[:-1])
    if "subtract_position" in kind.options:
        published = _without_class_token(published, source)
    names = [layer.name for layer in layers], [layer.norm for layer in normed]
    return Convolutions(kind.inverse, kind.options, published, lambda own: _names(own, *names), kind.variant)


def fold_norm(published: Published, convolution: str, norm: str) -> Published:
    """The same network without the BatchNorm ``norm``, which the ``convolution`` before it takes in."""
    published.expect([f"{norm}.{kind}" for kind in STATISTICS])
    tensors = dict(published.tensors)
    scale, shift, mean, variance, count = (tensors.pop(f"{norm}.{kind}").double() for kind in STATISTICS)
    weight, bias = tensors[f"{convolution}.weight"], tensors[f"{convolution}.bias"]
    if {each.shape for each in (scale, shift, mean, variance, bias)} != {weight.shape[1:2]} or count.dim():
        raise published.refused(misshaped=[f"{norm} beside {convolution}"])
    factor = scale / (variance + EPSILON).sqrt()
    tensors[f"{convolution}.weight"] = (weight * factor.view(-1, 1, 1)).to(weight.dtype)
    tensors[f"{convolution}.bias"] = ((bias - mean) * factor + shift).to(bias.dtype)
    return replace(published, tensors=tensors)


def _layers(published: Published) -> list[Layer]:
    """The convolutions in their order: ``up_conv_2_2`` comes after ``up_conv_2``, the final one last."""
    found = {
        match[0]: [int(number) for number in re.findall(r"\d+", match[0])] or [10**6]
        for name in published.tensors
        if (match := re.match(r"(?:up_conv|conv_t)(?:_\d+)+|final_conv", name))
    }
    ordered = sorted(found, key=lambda name: found[name])
    published.expect([f"{name}.{kind}" for name in ordered for kind in ("weight", "bias")])
    return [_layer(published, name) for name in ordered]


def _layer(published: Published, name: str) -> Layer:
    weight = published.tensors[f"{name}.weight"]
    if weight.dim() != 4 or weight.shape[2] != weight.shape[3]:
        raise published.refused(misshaped=[f"{name}.weight, {tuple(weight.shape)}"])
    norm = re.sub(r"^(?:up_conv|conv_t)_", "bn_", name)
    has_norm = norm != name and any(each.startswith(f"{norm}.") for each in published.tensors)
    return Layer(name, norm, has_norm, kernel=weight.shape[2], width=weight.shape[1])


def _kind(published: Published, layers: Sequence[Layer], source: Layout, target: Layout) -> Kind:
    stride = times_finer(target.grid, source.grid)
    kernels, doublings = [layer.kernel for layer in layers], (stride - 1).bit_length()
    if kernels == [stride]:
        return Kind("patch", {"whole": True}, "whole", normed=True)
    if kernels[-1] == stride and set(kernels[:-1]) == {1}:
        return Kind("local", {"depth": len(layers) - 1}, "local", normed=False)
    if kernels == [2] * doublings:
        widths = [layer.width for layer in layers[:-1]]
        position = {"subtract_position": True} if "pos_emb" in published.tensors else {}
        return Kind("patch", {"widths": widths, **position}, "position" if position else "", normed=True)
    options = {"expansion": layers[0].width / source.width}
    if kernels == [1] + [3] * (doublings + 3):
        return Kind("deconvolution", options, "", normed=True)
    if kernels == [1] + [3] * (doublings + 1):
        return Kind("deconvolution", {**options, "batch_norm": False}, "plain", normed=False)
    raise UserError(
        f"{published.origin} has convolutions with kernels {', '.join(map(str, kernels))}, which are none of the "
        f"authors' inverses from a grid of {source.grid[0]}x{source.grid[1]} to an image of "
        f"{target.grid[0]}x{target.grid[1]} pixels"
    )


def _as_plain_convolutions(published: Published, layers: Sequence[Layer]) -> Published:
    """1x1 transposed convolutions as the convolutions that they are: the first two axes of their weights exchanged."""
    turned = {f"{layer.name}.weight": published.tensors[f"{layer.name}.weight"].transpose(0, 1) for layer in layers}
    return replace(published, tensors={**published.tensors, **turned})


def _without_class_token(published: Published, source: Layout) -> Published:
    """The position embedding of the patches alone: the rest is subtracted from tokens that are then dropped."""
    position = published.tensors["pos_emb"]
    if position.shape != (1, source.tokens, source.width):
        expected = f"1x{source.tokens}x{source.width}"
        raise published.refused(misshaped=[f"pos_emb, {tuple(position.shape)} instead of {expected}"])
    return replace(published, tensors={**published.tensors, "pos_emb": position[0, source.prefix :]})


def _names(inverse: Inverse, convolutions: Sequence[str], norms: Sequence[str]) -> dict[str, str]:
    """Our tensors' names -> theirs: the layers of either kind, one after the other."""
    pairs = [
        *_paired(inverse, (nn.Conv2d, nn.ConvTranspose2d), convolutions),
        *_paired(inverse, (nn.BatchNorm2d,), norms),
    ]
    found = {f"{own}.{kind}": f"{theirs}.{kind}" for own, theirs in pairs for kind in STATISTICS}
    return {**found, "position": "pos_emb"}


def _paired(inverse: Inverse, kinds: tuple[type[nn.Module], ...], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    own = [name for name, module in inverse.named_modules() if isinstance(module, kinds)]
    return zip(own, names, strict=True)

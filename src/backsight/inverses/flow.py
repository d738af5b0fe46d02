"""Inverses that sample: draws of what may have led to the features, by conditional flow matching.

A network trained on the squared error gives the mean of all targets that fit the features. A flow gives one of them at
a time: noise is carried along a learned velocity field to a draw of the target (Lipman et al., *Flow Matching for
Generative Modeling*, ICLR 2023; the straight paths of Liu et al., *Flow Straight and Fast*, ICLR 2023).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from backsight.core import Layout
from backsight.inverses.base import Inverse, Moments, times_finer
from backsight.validation import Depth, Number, Side

SMALLEST = 1e-3
"""The least standard deviation of a channel, as a share of the mean over channels."""

STILL = 0.125
"""The share of training images on which the flow learns the mean of what the mean network leaves."""

MOMENTUM = 0.05
"""How quickly the spread of what the mean network leaves is followed, by the batch."""

FREQUENCIES = 32
"""Pairs of sine and cosine that time is read by."""

FINEST = 4
"""Pixels of the image, at most, for one place of the grid that convolutions work on."""

OPPONENT = ((1 / 3**0.5,) * 3, (0.5**0.5, 0.0, -(0.5**0.5)), (1 / 6**0.5, -2 / 6**0.5, 1 / 6**0.5))
"""Grey, red against blue, green against both: RGB turned so that what its channels share is in the first."""


class Flow(Inverse):
    """A mean, and a flow of what the mean leaves: every draw is one input that may have led to the features.

    Two networks of one kind, each with its own loss, on this component alone. The first gives the mean of the target
    (squared error, eq. 1 of the paper). The second is the velocity of a flow from noise ``z`` to the rest ``r`` of the
    target in units of its spread ``s``: it minimises ``|s (v(x, t) - (r - z))|^2`` at ``x = (1 - t) z + t r``. A draw
    is the mean and the rest that ``dx/dt = v(x, t)`` leads to from ``z`` at t = 0 to t = 1. Noise of images has the
    power spectrum of the rest, so that what is fine in it is as faint as it is to be, before anything is learned.

    Images are painted by a light U-Net over patches of at most :data:`FINEST` pixels, tokens by transformer blocks that
    time modulates (Peebles and Xie 2023). Any source will do: tokens that stand where the target's stand are read
    there, a grid or several are brought to the image's, others are attended to.

    The inverse without noise (``inverse(features)``, and so ``reconstruct``) gives the mean of all draws, not one of
    them: at t = 0, where nothing is known but the features, the velocity from zero is the mean of the rest. The flow
    learns that on a part of the images (:data:`STILL`).

    Args:
        width: channels of the U-Net at its finest grid (32 if not given), or of the blocks (the target's).
        depth: blocks, or grids of the U-Net, each half as fine as the one before.
        steps: in which a draw is made.
        method: ``heun`` looks twice at every step, ``euler`` once.
    """

    samples: ClassVar[bool] = True

    def __init__(
        self,
        source: Layout,
        target: Layout,
        *,
        width: Side | None = None,
        depth: Depth = 3,
        steps: Number = 8,
        method: Literal["heun", "euler"] = "heun",
    ) -> None:
        super().__init__(source, target)
        self.steps: Number = steps
        self.method = method
        network = ImageNetwork if target.image else TokenNetwork
        self.mean: ImageNetwork | TokenNetwork = network(source, target, width, depth, given=0)
        self.velocity: ImageNetwork | TokenNetwork = network(source, target, width, depth, given=2)
        self.source_mean: Tensor
        self.source_std: Tensor
        self.target_mean: Tensor
        self.target_std: Tensor
        self.running_var: Tensor
        self.opponent: Tensor
        self.register_buffer("opponent", torch.tensor(OPPONENT), persistent=False)
        for name, layout in (("source", source), ("target", target)):
            self.register_buffer(f"{name}_mean", torch.zeros(layout.width))
            self.register_buffer(f"{name}_std", torch.ones(layout.width))
        # Of the rest, by channel, of images by channel and frequency; processes share it by its name.
        *_, columns = self.noise_shape
        spectrum = (*self.noise_shape[:-1], columns // 2 + 1)
        self.register_buffer("running_var", torch.ones(spectrum if target.image else (target.width,)))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of the noise of one draw: ``N' D'``, or ``3 H' W'`` with what a rounded-up grid adds."""
        if isinstance(self.mean, ImageNetwork):
            return (3, *self.mean.canvas)
        return self.target.tokens, self.target.width

    def forward(self, features: Tensor, target: Tensor | None = None, counted: Tensor | None = None) -> Tensor:
        """``B N D`` -> the mean of all draws, ``B N' D'`` or ``B 3 H W`` in [0, 1]. With a ``target`` the loss against
        it, a scalar in units of the target's variance; over the tokens or pixels that are ``counted`` (``B N'``)."""
        known = self._standard(features)
        mean = self.mean(known, None, None)
        if target is not None:
            return self._loss(known, mean, target, counted)
        return self._restore(mean, self._slope(known, mean, torch.zeros_like(mean), mean.new_zeros(len(mean))))

    @torch.no_grad()
    def sample(self, features: Tensor, noise: Tensor, steps: int | None = None) -> Tensor:
        """Draws of the target.

        Args:
            features: ``B N D``.
            noise: standard normal, ``B`` times :attr:`noise_shape`: the same noise gives the same draw.
            steps: in place of its own.

        Returns:
            ``B N' D'``, or ``B 3 H W`` in [0, 1].
        """
        known = self._standard(features)
        mean = self.mean(known, None, None)
        steps = steps or self.steps

        def slope(rest: Tensor, step: int) -> Tensor:
            return self._slope(known, mean, rest, mean.new_full((len(mean),), step / steps))

        rest = self._coloured(noise)
        for step in range(steps):
            found = slope(rest, step)
            if self.method == "heun":
                found = (found + slope(rest + found / steps, step + 1)) / 2
            rest = rest + found / steps
        return self._restore(mean, rest)

    def _slope(self, known: Tensor, mean: Tensor, rest: Tensor, time: Tensor) -> Tensor:
        """The velocity at ``rest`` and ``time`` ``B``: what it would be of Gaussian noise, and what the network adds.

        Without the first part the network would have to carry the noise itself through its narrow layers (as in Karras
        et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS 2022).
        """
        known_part = (2 * time - 1) / (time.square() + (1 - time).square())
        return known_part.view(-1, *[1] * (rest.ndim - 1)) * rest + self.velocity(known, [rest, mean], time)

    # ---- the loss

    def _loss(self, known: Tensor, mean: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        wanted = self._wanted(target)
        rest = wanted - mean.detach().float()
        if self.training:
            self._follow(rest)
        unit = self._unit(rest)
        rest = rest / unit
        noise, time = self._path(rest)
        share = time.view(-1, *[1] * (rest.ndim - 1))
        found = self._slope(known, mean.detach(), (1 - share) * noise + share * rest, time)
        # In units of the target, not of the rest: the rest's own grow smaller while the mean is learned, so that errors
        # in them would rise, and the first weights seem the best.
        errors = (mean.float() - wanted).square() + (unit * (found.float() - (rest - noise))).square()
        if self.target.image:
            errors = self.crop(errors)
        if counted is None:
            return errors.mean()
        errors = errors.mean(1 if self.target.image else 2).flatten(1)
        return torch.where(counted, errors, 0).sum() / counted.sum()

    def _path(self, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Noise like ``rest`` and times ``B``, spread evenly over the batch. In evaluation they are always the same,
        so that errors can be compared, and that nothing is taken from the generator of training."""
        count, generator = len(rest), None
        if not self.training:
            generator = torch.Generator().manual_seed(0)
        device = rest.device if generator is None else "cpu"
        noise = torch.randn(rest.shape, generator=generator, device=device)
        chance, still = torch.rand(2, count, generator=generator, device=device)
        time = (torch.arange(count, device=device) + chance) / count
        moving = (still >= STILL).float()
        noise = noise * moving.view(-1, *[1] * (rest.ndim - 1))
        return self._coloured(noise.to(rest)), (time * moving).to(rest)

    @torch.no_grad()
    def _follow(self, rest: Tensor) -> None:
        if self.target.image:
            found = torch.fft.rfft2(rest, norm="ortho").abs().square().mean(0)
        else:
            found = rest.square().mean((0, 1))
        self.running_var.lerp_(found.clamp(min=SMALLEST**3).to(self.running_var), MOMENTUM)

    def _unit(self, like: Tensor) -> Tensor:
        """The standard deviation of the rest by channel, to go with ``like``."""
        if not self.target.image:
            return self.running_var.sqrt().to(like)
        whole = 2 * self.running_var.sum((1, 2)) - self.running_var[..., 0].sum(1)  # every column counts twice, but 0
        across = like.shape[-1]
        if across % 2 == 0:  # and the last
            whole = whole - self.running_var[..., -1].sum(1)
        return (whole / (like.shape[-2] * across)).sqrt().to(like).view(-1, 1, 1)

    def _coloured(self, noise: Tensor) -> Tensor:
        """White noise with the power spectrum of the rest, in units of its spread; of tokens as it is."""
        if not self.target.image:
            return noise
        spectrum = torch.fft.rfft2(noise.float()) * self.running_var.float().sqrt()
        return torch.fft.irfft2(spectrum, s=noise.shape[-2:]).to(noise) / self._unit(noise)

    # ---- units

    def _standard(self, features: Tensor) -> Tensor:
        """``B N D`` in units of the source's spread, the logits of predictions as a class distribution."""
        return (self.known(features) - self.source_mean) / self.source_std

    def _wanted(self, target: Tensor) -> Tensor:
        """``B N' D'`` in units of its spread; ``B 3 H W`` too, in opponent colours, enlarged to the canvas."""
        wanted = (target - self._channels(self.target_mean, target)) / self._channels(self.target_std, target)
        if not isinstance(self.mean, ImageNetwork):
            return wanted
        wanted = torch.einsum("dc,bchw->bdhw", self.opponent.to(wanted), wanted)
        (height, width), (down, across) = self.target.grid, self.mean.canvas
        beyond = (0, across - width, 0, down - height)
        return functional.pad(wanted, beyond, mode="replicate") if any(beyond) else wanted

    def _restore(self, mean: Tensor, rest: Tensor) -> Tensor:
        found = mean + self._unit(mean) * rest
        if self.target.image:
            found = torch.einsum("dc,bdhw->bchw", self.opponent.to(found), found)
        found = found * self._channels(self.target_std, found) + self._channels(self.target_mean, found)
        return self.crop(found).clamp(0, 1) if self.target.image else found

    def _channels(self, values: Tensor, like: Tensor) -> Tensor:
        return values.to(like).view(-1, 1, 1) if self.target.image else values.to(like)

    # ---- how it begins

    def moments(self) -> Moments:
        """The spread of what it reads and of what it has to give."""
        return Moments(images=64, reads=self.known)

    @torch.no_grad()
    def begin(self, moments: Moments) -> None:
        """Take these as the units of what is read and given."""
        for name, spread in (("source", moments.source), ("target", moments.target)):
            getattr(self, f"{name}_mean").copy_(spread.mean)
            getattr(self, f"{name}_std").copy_(spread.std.clamp(min=max(SMALLEST * float(spread.std.mean()), 1e-6)))


# ---- time


class Time(nn.Module):
    """Time in [0, 1] as a vector: ``B`` -> ``B width``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies: Tensor
        frequencies = math.pi * torch.logspace(-1, 2, FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers: nn.Sequential = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, time: Tensor) -> Tensor:
        """``B`` -> ``B width``."""
        phases = time[:, None] * self.frequencies
        return self.layers(torch.cat([phases.sin(), phases.cos()], 1))


def _zero(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """A layer that begins as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


# ---- tokens


class TokenNetwork(nn.Module):
    """Tokens of the target's layout, by transformer blocks from the source's, and as many ``given`` as are asked for.

    Where source and target have the same places, a token reads the one that stands there; else the source's tokens
    follow the target's in one sequence, and all attend to all.
    """

    def __init__(self, source: Layout, target: Layout, width: int | None, depth: int, given: int) -> None:
        super().__init__()
        width = width or target.width
        heads = next(each for each in (8, 4, 2, 1) if width % each == 0)
        self.aligned: bool = source.tokens == target.tokens and source.grids == target.grids
        self.count: int = target.tokens
        self.source_position: nn.Parameter = nn.Parameter(torch.zeros(source.tokens, source.width))
        self.target_position: nn.Parameter = nn.Parameter(0.02 * torch.randn(target.tokens, width))
        self.enter: nn.Linear = nn.Linear(source.width, width)
        self.given: nn.Linear | None = nn.Linear(given * target.width, width) if given else None
        self.time: Time | None = Time(width) if given else None
        self.blocks: nn.ModuleList = nn.ModuleList(Block(width, heads, timed=bool(given)) for _ in range(depth))
        self.norm: nn.LayerNorm = nn.LayerNorm(width)
        self.end: nn.Linear | nn.Conv2d = _zero(nn.Linear(width, target.width))

    def forward(self, known: Tensor, given: list[Tensor] | None, time: Tensor | None) -> Tensor:
        """Features ``B N D``, ``given`` ``B N' D'`` each, time ``B`` -> ``B N' D'``."""
        read = self.enter(known + self.source_position)
        tokens = self.target_position.expand(len(known), -1, -1)
        if given is not None and self.given is not None:
            tokens = tokens + self.given(torch.cat(given, -1))
        tokens = tokens + read if self.aligned else torch.cat([tokens, read], 1)
        when = None if self.time is None or time is None else self.time(time)
        for block in self.blocks:
            tokens = block(tokens, when)
        return self.end(self.norm(tokens[:, : self.count]))


class Block(nn.Module):
    """A pre-norm transformer block; with time, every normalised token is scaled and moved by it (DiT's)."""

    def __init__(self, width: int, heads: int, *, timed: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1: nn.LayerNorm = nn.LayerNorm(width)
        self.norm2: nn.LayerNorm = nn.LayerNorm(width)
        self.attention: nn.Linear = nn.Linear(width, 3 * width)
        self.merge: nn.Linear = nn.Linear(width, width)
        self.mlp: nn.Sequential = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
        self.modulation: nn.Linear | nn.Conv2d | None = _zero(nn.Linear(width, 4 * width)) if timed else None

    def forward(self, tokens: Tensor, time: Tensor | None) -> Tensor:
        """``B N W``, time ``B W`` -> ``B N W``."""
        scales: list[Tensor | None] = [None] * 4
        if self.modulation is not None and time is not None:
            scales = list(self.modulation(time)[:, None].chunk(4, -1))
        tokens = tokens + self._attend(_modulated(self.norm1(tokens), scales[0], scales[1]))
        return tokens + self.mlp(_modulated(self.norm2(tokens), scales[2], scales[3]))

    def _attend(self, tokens: Tensor) -> Tensor:
        query, key, value = rearrange(self.attention(tokens), "b n (k m d) -> k b m n d", k=3, m=self.heads)
        found = functional.scaled_dot_product_attention(query, key, value)
        return self.merge(rearrange(found, "b m n d -> b n (m d)"))


def _modulated(values: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return values if scale is None or shift is None else values * (1 + scale) + shift


# ---- images


class ImageNetwork(nn.Module):
    """An image by a light U-Net over patches, from features and as many images as are ``given``.

    Attributes:
        canvas: (H', W') of the image with what a rounded-up grid adds.
    """

    def __init__(self, source: Layout, target: Layout, width: int | None, depth: int, given: int) -> None:
        super().__init__()
        width = width or 32
        self.place: Placed = Placed(source, target, width)
        self.canvas: tuple[int, int] = self.place.canvas
        self.patch: int = self.place.patch
        channels = 3 * self.patch**2
        self.given: nn.Conv2d | None = nn.Conv2d(given * channels, width, 1) if given else None
        self.time: Time | None = Time(width) if given else None
        sides = [self.canvas[0] // self.patch, self.canvas[1] // self.patch]
        halvings = min(max(depth - 1, 0), min(sides).bit_length() - 1)
        widths = [width, *[2 * width] * halvings]
        when = width if given else 0
        self.down: nn.ModuleList = nn.ModuleList(
            ResidualBlock(a, b, when) for a, b in zip([width, *widths], widths, strict=False)
        )
        self.middle: ResidualBlock = ResidualBlock(widths[-1], widths[-1], when)
        self.up: nn.ModuleList = nn.ModuleList(
            ResidualBlock(below + own, own, when)
            for below, own in zip([widths[-1], *widths[:0:-1]], widths[::-1], strict=True)
        )
        self.norm: nn.GroupNorm = nn.GroupNorm(_groups(width), width)
        self.end: nn.Linear | nn.Conv2d = _zero(nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, known: Tensor, given: list[Tensor] | None, time: Tensor | None) -> Tensor:
        """Features ``B N D``, ``given`` ``B 3 H' W'`` each, time ``B`` -> ``B 3 H' W'``."""
        maps = self.place(known)
        if given is not None and self.given is not None:
            maps = maps + self.given(torch.cat([functional.pixel_unshuffle(each, self.patch) for each in given], 1))
        when = None if self.time is None or time is None else self.time(time)
        kept: list[Tensor] = []
        for number, block in enumerate(self.down):
            maps = block(functional.avg_pool2d(maps, 2, ceil_mode=True) if number else maps, when)
            kept.append(maps)
        maps = self.middle(maps, when)
        for block, beside in zip(self.up, kept[::-1], strict=True):
            maps = functional.interpolate(maps, beside.shape[-2:]) if maps.shape != beside.shape else maps
            maps = block(torch.cat([maps, beside], 1), when)
        return functional.pixel_shuffle(self.end(functional.silu(self.norm(maps))), self.patch)


class Placed(nn.Module):
    """Features where they stand in the image: ``B N D`` -> ``B width h w``, a place for every patch of pixels.

    A token of the finest grid becomes its own square of places. Those of coarser grids are brought there, and
    tokens without a grid are read by places of 16 pixels.
    """

    def __init__(self, source: Layout, target: Layout, width: int) -> None:
        super().__init__()
        self.prefix: int = source.prefix
        height, across = target.grid
        self.grids: list[tuple[Side, Side]] = list(source.grids) or [(-(-height // 16), -(-across // 16))]
        self.finest: int = max(range(len(self.grids)), key=lambda level: math.prod(self.grids[level]))
        (h, w), stride = self.grids[self.finest], times_finer(target.grid, self.grids[self.finest])
        self.canvas: tuple[int, int] = (h * stride, w * stride)
        self.patch: int = max(each for each in range(1, FINEST + 1) if stride % each == 0)
        self.times: int = stride // self.patch
        self.position: nn.Parameter = nn.Parameter(torch.zeros(source.tokens, source.width))
        self.asked: nn.Parameter | None = None if source.grids else nn.Parameter(torch.randn(h * w, width))
        self.keys: nn.Linear | None = None if source.grids else nn.Linear(source.width, width)
        self.enter: nn.ModuleList = nn.ModuleList(
            nn.Linear(source.width, width * (self.times**2 if level == self.finest else 1))
            for level in range(len(self.grids))
        )

    def forward(self, known: Tensor) -> Tensor:
        """``B N D`` -> ``B width h w``."""
        known = known + self.position
        if self.asked is not None and self.keys is not None:
            queries = self.asked.expand(len(known), -1, -1)
            known = functional.scaled_dot_product_attention(queries, self.keys(known), known)
        parts = known[:, self.prefix if self.asked is None else 0 :].split([h * w for h, w in self.grids], 1)
        side = {"p": self.times, "q": self.times}
        own = rearrange(
            self.enter[self.finest](parts[self.finest]),
            "b (h w) (c p q) -> b c (h p) (w q)",
            h=self.grids[self.finest][0],
            **side,
        )
        for level, (part, (h, _)) in enumerate(zip(parts, self.grids, strict=True)):
            if level != self.finest:
                maps = rearrange(self.enter[level](part), "b (h w) c -> b c h w", h=h)
                own = own + functional.interpolate(maps, own.shape[-2:], mode="bilinear")
        return own


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the way straight on, the second one scaled and moved by time."""

    def __init__(self, wide: int, narrow: int, time: int) -> None:
        super().__init__()
        self.norm1: nn.GroupNorm = nn.GroupNorm(_groups(wide), wide)
        self.norm2: nn.GroupNorm = nn.GroupNorm(_groups(narrow), narrow)
        self.conv1: nn.Conv2d = nn.Conv2d(wide, narrow, 3, padding=1)
        self.conv2: nn.Conv2d = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.straight: nn.Conv2d | nn.Identity = nn.Conv2d(wide, narrow, 1) if wide != narrow else nn.Identity()
        self.modulation: nn.Linear | nn.Conv2d | None = _zero(nn.Linear(time, 2 * narrow)) if time else None

    def forward(self, maps: Tensor, time: Tensor | None) -> Tensor:
        """``B wide h w``, time ``B T`` -> ``B narrow h w``."""
        inner = self.norm2(self.conv1(functional.silu(self.norm1(maps))))
        if self.modulation is not None and time is not None:
            scale, shift = self.modulation(time)[..., None, None].chunk(2, 1)
            inner = inner * (1 + scale) + shift
        return self.straight(maps) + self.conv2(functional.silu(inner))


def _groups(channels: int) -> int:
    return next(each for each in (8, 4, 2, 1) if channels % each == 0)

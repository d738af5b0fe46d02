"""Whether noise stays in the patches of the tokens that carry it (paper, sec. 4.4, Fig. 9 and 16)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from backsight.core import Layout, UserError
from backsight.data import Batch
from backsight.devices import exact
from backsight.experiments.drawing import models_of, points, title_of
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject
from backsight.figures import Block, ErrorPoint, Pages, Panel, pages, panel_part, picture_parts
from backsight.inverses.base import times_finer
from backsight.metrics.probe import FEWEST, fit_probe
from backsight.perturb import Noise, choose_tokens, generator_for, noise_tokens, region_mean
from backsight.results import Label, Measurement, Picture, Result
from backsight.validation import AnyNumber

SHARES = (0.1, 0.3, 0.5)
"""The paper's: parts of the tokens that are replaced."""

UNCHANGED = 1e-8
"""A squared error below this, a fortieth of one of 255 levels, is no change: it has no place that it could stay in."""

PATCHES = "patches"
"""What is gathered beside the metrics, to look for the noise in."""

CHAIN, LOCAL = "chain", "local"
"""What reads the features: the chain as it is, or with the inverse of its first stage that sees one token at a time."""


@dataclass(frozen=True)
class Route:
    """Tokens are replaced at stage ``noised``; the image is reconstructed from stage ``read``, which is the same or is
    reached through the rest of the real model; ``inverse`` is :data:`CHAIN` or :data:`LOCAL`."""

    noised: str
    read: str
    inverse: str = CHAIN

    def options(self, subject: Subject) -> dict[str, Any]:
        """The options of :meth:`Subject.reconstruct` that choose the inverse."""
        return {} if self.inverse == CHAIN else {"via": {subject.stages[0]: LOCAL}}


def routes(subject: Subject) -> list[Route]:
    """Every stage with a grid read where it is noised, and from the stage before it through the model."""
    gridded = [stage for stage in subject.stages if subject.model.layout(stage).grids]
    there = [Route(stage, stage) for stage in gridded]
    resumed = [Route(before, after) for before, after in pairwise(gridded)]
    has_local = f"{subject.stages[0]}@{LOCAL}" in subject.ensemble.entries
    inverses = (CHAIN, LOCAL) if has_local else (CHAIN,)
    return [Route(route.noised, route.read, inverse) for inverse in inverses for route in (*there, *resumed)]


def measure(
    subject: Subject,
    *,
    shares: Sequence[float] = SHARES,
    noise: Noise = "uniform",
    seed: int = 0,
    num_pictures: AnyNumber = 1,
) -> Result:
    """Replace a random share of the tokens and compare with the reconstruction of the clean features.

    Labels: ``model``, ``noised`` (the stage), ``stage`` (that is read; where it is a later one the noise goes through
    the real model), ``inverse`` (``chain``, and ``local`` where the chains have ``backbone@local``), ``share``, and
    ``metric``:

    ``error``
        The squared error against the reconstruction of the clean features, RGB in [0, 1]; ``region``: ``noised`` (the
        patches of the replaced tokens), ``untouched``.
    ``containment``
        ``1 - untouched / noised``: 1 where the noise stays in its patches, 0 where it is felt everywhere alike.
    ``input error``, ``clean input error``
        The squared error against the input in the patches of the replaced tokens, with the noise and without.
    ``AUC``
        How well the noised patches can be found in the picture: a linear probe on the colour, the contrast and the
        edges of each patch, fitted to every other image and tested on the rest; .5 is chance, 1 all of them. Whoever
        fills patches with plausible pixels leaves it near .5.

    Args:
        shares: of the grid's tokens, 0..1; a smaller share is part of a larger one. Prefix tokens are left alone.
        noise: ``uniform`` (each channel in the range that it has in the image), ``zero``, or ``swap`` (the tokens of
            the next image).
        seed: of the choice and of the noise, which depend on it and the image's id alone.
        num_pictures: how many images are kept as pictures.

    Raises:
        UserError: shares that cannot be, or an image alone in its batch that should swap tokens.
    """
    _check(subject, shares, noise)
    pictures: list[Picture] = []

    def answers(batch: Batch) -> dict[tuple[Route, float, str, str], Tensor]:
        found = {}
        for share in shares:
            for trial in _trials(subject, batch, share, noise, seed):
                found |= {(trial.route, share, *kind): values for kind, values in trial.errors(batch.images).items()}
                found |= {(trial.route, share, *kind): values for kind, values in trial.patches().items()}
                if batch is subject.batches[0]:
                    pictures.extend(_pictures(batch, trial, share, num_pictures))
        return found

    found = subject.gather(answers)
    measurements = [Measurement(_labels(*key), values) for key, values in found.items() if key[2] != PATCHES]
    for route, share in dict.fromkeys(key[:2] for key in found):
        shown, noised = (found[route, share, PATCHES, each] for each in ("shown", "noised"))
        measurements.append(Measurement(_labels(route, share, "AUC"), found_patches(shown, noised[0].bool())))
    settings = {"shares": list(shares), "noise": noise, "seed": seed, "num_pictures": num_pictures}
    return subject.result("token_noise", measurements, pictures, settings)


def _check(subject: Subject, shares: Sequence[float], noise: str) -> None:
    if not shares or not all(0 < share < 1 for share in shares):
        raise UserError(f"shares {list(shares)}: give parts of the tokens between 0 and 1, as 0.1 0.3 0.5")
    if noise == "swap" and any(len(batch.ids) < 2 for batch in subject.batches):
        raise UserError("tokens are swapped within a batch, and one has a single image: take one image more or less")


@dataclass(frozen=True)
class _Trial:
    """The reconstructions of a batch, noisy and clean, ``S B 3 H W``; ``mask`` ``B H W`` is where the noise went in,
    ``chosen`` ``B h w`` the same by place of the grid."""

    route: Route
    noisy: Tensor
    clean: Tensor
    mask: Tensor
    chosen: Tensor

    def errors(self, images: Tensor) -> dict[tuple[str, str], Tensor]:
        """(metric, region) -> ``S B``; ``images`` are the inputs, ``B 3 H W``."""
        apart = (exact(self.noisy) - exact(self.clean)).square().mean(2)
        inside, outside = region_mean(apart, self.mask), region_mean(apart, ~self.mask)
        contained = torch.where(inside >= UNCHANGED, 1 - outside / inside, math.nan)
        against = {
            (metric, "noised"): region_mean((exact(found) - exact(images)).square().mean(2), self.mask)
            for metric, found in (("input error", self.noisy), ("clean input error", self.clean))
        }
        own = {("error", "noised"): inside, ("error", "untouched"): outside, ("containment", ""): contained}
        return own | against

    def patches(self) -> dict[tuple[str, str], Tensor]:
        """What the pictures show at each place of the grid, ``S B P F``, and which places were noised, ``1 B P``."""
        shown = describe_patches(self.noisy, (self.chosen.shape[1], self.chosen.shape[2]))
        return {(PATCHES, "shown"): shown, (PATCHES, "noised"): self.chosen.flatten(1)[None]}


@torch.no_grad()
def _trials(subject: Subject, batch: Batch, share: float, noise: Noise, seed: int) -> Iterator[_Trial]:
    """One trial for each route. What is noised, and what the model makes of it, is computed once for all inverses."""
    trace = subject.trace(batch)
    size = (batch.images.shape[-2], batch.images.shape[-1])
    edited: dict[tuple[str, str], Tensor] = {}
    masks: dict[str, tuple[Tensor, Tensor]] = {}
    for route in routes(subject):
        here, there = (route.noised, route.noised), (route.noised, route.read)
        if here not in edited:
            layout = subject.model.layout(route.noised)
            chosen = torch.stack([choose_tokens(layout, share, generator_for(seed, each)) for each in batch.ids])
            noises = [generator_for(seed, f"{each} noise") for each in batch.ids]
            edited[here] = noise_tokens(trace[route.noised], chosen, noise, noises, layout.prefix)
            h, w = layout.grids[-1]
            pixels = patch_pixels(chosen, layout, size).to(batch.images.device)
            masks[route.noised] = pixels, chosen[:, -h * w :].unflatten(1, (h, w))
        if there not in edited:
            edited[there] = subject.model.resume(route.noised, edited[here], trace, until=route.read)[route.read]
        options = route.options(subject)
        noisy = subject.invert(edited[there], route.read, **options)
        yield _Trial(route, noisy, subject.reconstruct(batch, route.read, **options), *masks[route.noised])


def patch_pixels(chosen: Tensor, layout: Layout, size: tuple[int, int]) -> Tensor:
    """The pixels of the chosen tokens' patches (of the coarsest grid): ``B N`` bool -> ``B H W`` bool."""
    (h, w), (height, width) = layout.grids[-1], size
    stride = times_finer(size, (h, w))
    places = chosen[:, -h * w :].unflatten(1, (h, w))
    pixels = places.repeat_interleave(stride, 1).repeat_interleave(stride, 2)[:, :height, :width]
    return torch.nn.functional.pad(pixels, (0, width - pixels.shape[2], 0, height - pixels.shape[1]))


# ---- whether the noise can be found


def describe_patches(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """What a picture shows at each place of a grid: mean colour, contrast within, and how far it is from the mean
    colour of its neighbours, for each channel.

    Args:
        images: ``... 3 H W``.
        grid: (h, w).

    Returns:
        ``... hw 9``, float32 on the CPU.
    """
    flat = images.flatten(0, -4).cpu()
    mean, square = (torch.nn.functional.adaptive_avg_pool2d(each, grid) for each in (flat, flat.square()))
    contrast = (square - mean.square()).clamp(min=0).sqrt()
    weights = torch.ones(3, 1, 3, 3)
    weights[:, :, 1, 1] = 0
    around = torch.nn.functional.conv2d(mean, weights, padding=1, groups=3)
    count = torch.nn.functional.conv2d(torch.ones_like(mean), weights, padding=1, groups=3).clamp(min=1)
    parts = torch.cat([mean, contrast, (mean - around / count).abs()], 1)
    return parts.flatten(2).mT.reshape(*images.shape[:-3], grid[0] * grid[1], 9)


def found_patches(features: Tensor, noised: Tensor) -> Tensor:
    """The area under the ROC curve of a probe that looks for noised patches, image by image.

    Args:
        features: ``S images P F``.
        noised: ``images P`` bool.

    Returns:
        ``S images``: of each half of the images (every other one) by a probe of the other half; NaN where an image has
        no patch of either kind, or there are too few to fit a probe to.
    """
    answers = torch.full(features.shape[:2], math.nan, dtype=torch.float64)
    even = torch.arange(features.shape[1]) % 2 == 0
    for seed, own in enumerate(features):
        for tested in (even, ~even):
            known = noised[~tested].flatten().float()[:, None]
            if len(known) >= FEWEST and tested.any():
                probe = fit_probe(own[~tested].flatten(0, 1), known)
                scores = probe(own[tested].flatten(0, 1)).reshape(int(tested.sum()), -1)
                answers[seed, tested] = area_under_curve(scores, noised[tested])
    return answers


def area_under_curve(scores: Tensor, truth: Tensor) -> Tensor:
    """The chance that what is true scores higher than what is not, ties counting half: ``B P`` and ``B P`` bool ->
    ``B``, NaN where there is none of either."""
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(scores.numpy(), axis=1))
    positive, negative = truth.sum(1).double(), (~truth).sum(1).double()
    area = ((ranks * truth).sum(1) - positive * (positive + 1) / 2) / (positive * negative)
    return torch.where((positive > 0) & (negative > 0), area, math.nan)


def _labels(route: Route, share: float, metric: str = "", region: str = "") -> dict[str, Label]:
    labels = {"noised": route.noised, "stage": route.read, "inverse": route.inverse, "share": share}
    return labels | {name: each for name, each in (("metric", metric), ("region", region)) if each}


def _pictures(batch: Batch, trial: _Trial, share: float, num: int) -> Iterator[Picture]:
    """As the first seed paints them; with each the image, grey in the patches of the replaced tokens."""
    for image in range(min(num, len(batch.ids))):
        labels = {**_labels(trial.route, share), "image": image}
        yield Picture({**labels, "shows": "reconstruction"}, trial.noisy[0, image].cpu())
        marked = torch.where(trial.mask[image], 0.25 * batch.images[image] + 0.375, batch.images[image])
        yield Picture({**labels, "shows": "input"}, marked.cpu())


# ---- the figure

_Pair = tuple[str, str]
"""(noised, read)."""


def draw(result: Result) -> Pages:
    """Containment over shares: noise at the first stage and at the last with a grid, read there, and from the one
    before it through the model; under them what an image becomes."""
    lines = {(model, inverse): _pairs(result, model, inverse) for model in models_of(result)
             for inverse in result.values_of("inverse")}  # fmt: skip
    panels = [panel for slot in range(3) if (panel := _panel(result, lines, slot)) is not None]
    drawn = [point for panel in panels for line in panel.table.values() for point in line]
    lowest = min((point.bounds[1] for point in drawn), default=0.0)
    panels = [replace(panel, limits=(min(-0.05, lowest - 0.05), 1.08)) for panel in panels]
    blocks = [block for line, pairs in lines.items() if pairs for block in _blocks(result, *line, pairs)]
    return pages([panel_part(panels), *picture_parts(blocks)])


def _pairs(result: Result, model: str, inverse: str) -> list[_Pair | None]:
    """The three routes of a line that are drawn; none where it has none at all."""
    found = result.select(model=model, inverse=inverse, metric="containment")
    every = list(dict.fromkeys((str(each.labels["noised"]), str(each.labels["stage"])) for each in found))
    there, through = [[pair for pair in every if (pair[0] == pair[1]) is same] for same in (True, False)]
    slots = (there[:1], there[1:][-1:], through[-1:])
    return [slot[0] if slot else None for slot in slots] if every else []


def _panel(result: Result, lines: Mapping[tuple[str, str], list[_Pair | None]], slot: int) -> Panel | None:
    drawn: dict[str, list[ErrorPoint]] = {}
    titles = []
    for (model, inverse), pairs in lines.items():
        if pairs and (pair := pairs[slot]):
            labels = {"model": model, "inverse": inverse, "noised": pair[0], "stage": pair[1]}
            drawn[_name(result, model, inverse)] = points(
                result.select(**labels, metric="containment"), "share", _percentages(result)
            )
            titles.append(_title(pair))
    if not drawn:
        return None
    title = ("From " if slot == 2 else "Noise at ") + " or ".join(dict.fromkeys(titles))
    label = "containment in the patches" if slot == 0 else ""
    return Panel(title, drawn, {"": 1.0}, label=label, across="tokens replaced")


def _blocks(result: Result, model: str, inverse: str, pairs: Sequence[_Pair | None]) -> list[Block]:
    """A row for every share; the image with the patches marked, and what is read on each of the routes."""
    known = [pair for pair in pairs if pair]
    shares, rows = _percentages(result), []
    for share in shares:
        labels = {"model": model, "inverse": inverse, "share": float(share), "image": 0}
        shown = [result.shown(**labels, noised=a, stage=b, shows="reconstruction") for a, b in known]
        marked = result.shown(**labels, noised=known[0][0], stage=known[0][1], shows="input")
        rows.append([found[0].image if found else None for found in (marked, *shown)])
    if all(picture is None for row in rows for picture in row):
        return []
    return [Block(_name(result, model, inverse), ["input", *map(_title, known)], list(shares.values()), rows)]


def _name(result: Result, model: str, inverse: str) -> str:
    return title_of(result, model) + ("" if inverse == CHAIN else f", {inverse} inverse")


def _title(pair: _Pair) -> str:
    return pair[0] if pair[0] == pair[1] else f"{pair[0]} to {pair[1]}"


def _percentages(result: Result) -> dict[str, str]:
    return {str(share): f"{100 * share:g} %" for share in result.values_of("share")}


TOKEN_NOISE = Experiment(
    "token_noise",
    "Does noise stay in the patches of its tokens?",
    measure,
    draw,
    padded=False,
    reading=(
        "What happens to the reconstruction when some tokens are replaced by noise: whether the damage stays in their "
        "patches. It tells how local the features and their inverses are, both together."
    ),
)

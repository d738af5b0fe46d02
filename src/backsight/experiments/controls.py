"""Controls: what is measured beside a claim, on the same images.

Two must not show what it says. An *untrained inverse* reads the features of the model itself, with the structure of the
trained ones: what it shows follows from that structure alone (a convolution spreads noise, a smooth function maps
neighbouring layers to similar pictures). An *untrained model* has the structure of the model and nothing that it has
learned, and untrained inverses. The third, a *linear inverse*, is a baseline: what ridge regressions of the same
training data read from the features, for which no network had to be trained.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from backsight.chain import InverseChain, build_chain
from backsight.core import UserError
from backsight.data import open_data
from backsight.engine import RANDOM, StagedModel
from backsight.experiments.subject import (
    CACHE_BYTES,
    LINEAR_INVERSE,
    UNTRAINED_INVERSE,
    UNTRAINED_MODEL,
    Subject,
    trained_on,
)
from backsight.models import duplicate
from backsight.tasks import linear_chain

logger: logging.Logger = logging.getLogger(__name__)

NUM_CONTROLLED = 32
"""Images that a control is measured on, at most."""


def controls_of(subject: Subject, num_images: int = NUM_CONTROLLED, seed: int = 0) -> Iterator[Subject]:
    """The controls of a subject, with one seed each, on its first images; no linear inverse where the images that the
    chains were trained on cannot be opened.

    Args:
        subject: a model with trained chains.
        num_images: at most so many.
        seed: of the untrained weights.
    """
    plans = subject.ensemble.chains[0].plans
    found = [(UNTRAINED_INVERSE, subject.model, build_chain(subject.model, plans, seed).eval())]
    other = untrained(subject.model, seed)
    found.append((UNTRAINED_MODEL, other, build_chain(other, plans, seed).eval()))
    try:
        found.append((LINEAR_INVERSE, subject.model, _linear(subject)))
    except UserError as error:
        logger.warning("%s: no linear inverse beside it: %s", subject.name, error)
    options = {"num_images": min(num_images, subject.num_images), "batch_size": subject.batch_size}
    for control, model, chain in found:
        more = {"mean_image": subject.baseline, "control": control, "fit": subject.fit, "cache": CACHE_BYTES // 8}
        yield Subject(model, chain, subject.data, processes=subject.processes, **options, **more)


def _linear(subject: Subject) -> InverseChain:
    """Solved for the images that the chains were trained on."""
    pixels = replace(subject.model.pixels, fit=subject.fit)
    return linear_chain(subject.model, open_data(trained_on(subject.ensemble) or subject.data.name, pixels).train)


def untrained(model: StagedModel, seed: int = 0) -> StagedModel:
    """A copy of a model with every weight drawn anew: by the layer itself where it can, else from a normal law of
    standard deviation 0.02, as transformers are. Statistics of BatchNorms are those that they begin with."""
    copy = duplicate(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in copy.module.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else nn.init.ones_(parameter)
            for name, buffer in module.named_buffers(recurse=False):  # of frozen BatchNorms, whose weights are buffers
                if name in ("running_var", "weight"):
                    nn.init.ones_(buffer)
                elif name in ("running_mean", "bias"):
                    nn.init.zeros_(buffer)
    copy.weights = RANDOM
    return duplicate(copy)

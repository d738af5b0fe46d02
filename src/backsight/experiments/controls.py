"""Controls: what must not show what a claim says, measured beside it on the same images.

An *untrained inverse* reads the features of the model itself, with the structure of the trained ones: what it shows
follows from that structure alone (a convolution spreads noise, a smooth function maps neighbouring layers to similar
pictures). An *untrained model* has the structure of the model and nothing that it has learned, and untrained inverses.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from backsight.chain import ChainEnsemble, build_chain
from backsight.engine import RANDOM, StagedModel
from backsight.experiments.subject import CACHE_BYTES, UNTRAINED_INVERSE, UNTRAINED_MODEL, Subject
from backsight.models import duplicate

NUM_CONTROLLED = 32
"""Images that a control is measured on, at most."""


def controls_of(subject: Subject, num_images: int = NUM_CONTROLLED, seed: int = 0) -> Iterator[Subject]:
    """The controls of a subject, with one seed each, on its first images.

    Args:
        subject: a model with trained chains.
        num_images: at most so many.
        seed: of the untrained weights.
    """
    plans = subject.ensemble.chains[0].plans
    for control, model in ((UNTRAINED_INVERSE, subject.model), (UNTRAINED_MODEL, untrained(subject.model, seed))):
        chains = ChainEnsemble([build_chain(model, plans, seed).eval()])
        options = {"num_images": min(num_images, subject.num_images), "batch_size": len(subject.batches[0].ids)}
        more = {"mean_image": subject.baseline, "control": control, "fit": subject.fit, "cache": CACHE_BYTES // 8}
        yield Subject(model, chains, subject.data, processes=subject.processes, **options, **more)


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

"""The layers of a subject's model, as experiments name them: each representation once."""

from __future__ import annotations

import torch

from backsight.core import IMAGE
from backsight.experiments.subject import Subject


def distinct_names(subject: Subject) -> list[str]:
    """Every stage and layer, in the order of the forward pass; the stage stands for a last layer that is the same."""
    return [name for name in subject.model.names if not _repeats_its_stage(subject, name)]


def layers_of(subject: Subject, stage: str) -> list[str]:
    """The stage before, the layers of ``stage``, and the stage itself."""
    before = [name for name in [subject.model.spec.before(stage)] if name != IMAGE]
    return [*before, *(name for name in distinct_names(subject) if stage_of(name) == stage)]


def stage_of(name: str) -> str:
    """The stage that a stage's or layer's name belongs to: ``encoder.3`` -> ``encoder``."""
    return name.partition(".")[0]


def is_read_as(subject: Subject, name: str, stage: str) -> bool:
    """Whether the inverse of ``stage`` takes the features of a stage or layer: their layouts are the same."""
    model = subject.model
    return stage in subject.stages and (name == stage or model.layout(name) == model.layout(stage))


def _repeats_its_stage(subject: Subject, name: str) -> bool:
    stage = stage_of(name)
    if name == stage:
        return False
    trace = subject.trace(subject.batches[0])
    return name in trace.features and stage in trace.features and torch.equal(trace[name], trace[stage])

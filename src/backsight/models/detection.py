"""What the detectors of transformers have in common: their layers, their prediction, how it reads."""

from __future__ import annotations

from typing import Any, Literal

from backsight.core import Detections, Site, Stage
from backsight.models.family import Read


def mirror(config: Any, part: str, **more: int) -> dict[str, int]:
    """The sizes of the encoder or decoder (``part``), which its inverse repeats, and ``more``."""
    names = {"depth": "layers", "heads": "attention_heads", "feedforward": "ffn_dim"}
    return {ours: getattr(config, f"{part}_{theirs}") for ours, theirs in names.items()} | more


def prediction_stage(classes: int, scores: Literal["softmax", "sigmoid"] = "softmax") -> Stage:
    """The prediction of a detector of transformers: ``classes`` logits and a box (cx, cy, w, h) of every query."""
    return Stage(
        "prediction",
        (Site("", field="logits"), Site("", field="pred_boxes")),
        inverses={"": ("prediction", {}), "onehot": ("prediction", {"onehot": True})},
        gridded=False,
        classes=classes,
        scores=scores,
    )


def layer_sites(path: str, count: int) -> tuple[Site, ...]:
    """The output of every layer of the encoder or decoder at ``path``."""
    return tuple(Site(f"{path}.layers.{index}") for index in range(count))


def read_with(processor: Any, module: Any) -> Read:
    """All that ``processor.post_process_object_detection`` makes of the output of ``module``, however faint."""
    labels = dict(module.config.id2label)

    def read(output: Any, size: tuple[int, int]) -> list[Detections]:
        sizes = [size] * len(output.logits)
        found = processor.post_process_object_detection(output, threshold=-1.0, target_sizes=sizes)
        return [Detections(each["boxes"], each["scores"], each["labels"], labels) for each in found]

    return read

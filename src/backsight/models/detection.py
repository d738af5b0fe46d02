"""What the detectors of transformers have in common: their layers, their prediction, how it reads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from backsight.core import Detections, Site, Spec, Stage, UserError
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


def deformable_stages(
    config: Any, backbone: Stage, encoder: Stage, reading: Mapping[str, Any], decoded: tuple[Site, ...] = ()
) -> Spec:
    """The stages of detectors that are built like Deformable DETR: ``backbone``, ``encoder``, a decoder, whose inverse
    has the sizes in ``reading``, and an independent score for every class and a box of every query.

    The heads read the decoder's last layer, or what is at the sites ``decoded``.
    """
    layers = layer_sites("model.decoder", config.decoder_layers)
    decoder = Stage("decoder", decoded or layers[-1:], layers, {"": ("deformable_decoder", reading)}, gridded=False)
    stages = (backbone, encoder, decoder, prediction_stage(config.num_labels, "sigmoid"))
    return Spec(config.model_type, "detect", stages)


def layer_sites(path: str, count: int, field: int | str | None = None) -> tuple[Site, ...]:
    """The output of every layer of the encoder or decoder at ``path``, or a ``field`` of it."""
    return tuple(Site(f"{path}.layers.{index}", field=field) for index in range(count))


def read_with(processor: str, module: Any) -> Read:
    """All that the post-processing of transformers' class ``processor`` makes of the output of ``module``, however
    faint: the likeliest class of every query, or the best pairs of query and class where each has a score of its own.
    """
    import transformers

    labels, processes = dict(module.config.id2label), getattr(transformers, processor)()

    def read(output: Any, size: tuple[int, int]) -> list[Detections]:
        sizes = [size] * len(output.logits)
        found = processes.post_process_object_detection(output, threshold=-1.0, target_sizes=sizes)
        return [Detections(each["boxes"], each["scores"], each["labels"], labels) for each in found]

    return read


# ---- images that a detector cannot take, told in one line where its library would crash or mix


Size = tuple[int, int]
"""(H, W) in pixels."""


def expect_multiples(kind: str, size: Size, step: int, *, square: bool = False) -> None:
    """Refuse sides that are no multiples of ``step``, and, if ``square``, two that are not the same (``UserError``)."""
    if size[0] % step or size[1] % step or (square and size[0] != size[1]):
        wanted = f"the same multiple of {step} for both sides" if square else f"multiples of {step}"
        raise UserError(f"a {kind} cannot take images of {size[0]}x{size[1]} pixels: give {wanted}")


def expect_tokens(kind: str, size: Size, strides: Sequence[float], queries: int) -> None:
    """Refuse images with fewer tokens, over the levels of all ``strides``, than a two-stage model draws from them.

    Raises:
        UserError: too few; it names the smallest square that has enough.
    """
    tokens = _tokens(size, strides)
    if tokens < queries:
        step = round(max(strides))
        enough = next(side for side in itertools.count(step, step) if _tokens((side, side), strides) >= queries)
        raise UserError(
            f"a {kind} starts its {queries} queries at the likeliest of its tokens, and images of {size[0]}x{size[1]} "
            f"pixels have {tokens}: {enough}x{enough} would do"
        )


def _tokens(size: Size, strides: Sequence[float]) -> int:
    """Grids are rounded up, as by convolutions with padding."""
    return sum(int(-(-size[0] // stride) * -(-size[1] // stride)) for stride in strides)

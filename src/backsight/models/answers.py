"""How the output of a model that no family describes reads as a prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backsight.arrange import fields_of, read_field
from backsight.core import Classes, Detections, UserError
from backsight.models.family import Read
from backsight.models.spec import Answer
from backsight.validation import nearest

Task = Literal["classify", "detect", "features"]


def guess(module: nn.Module, output: Any) -> tuple[Task, Answer]:
    """What the ``output`` of ``module`` looks like: logits ``B C``, or logits ``B Q C`` and boxes ``B Q 4``, in the
    fields in which libraries have them; else features.

    As many logits as the configuration has classes are scores of each by itself, one more is "no object". Where a text
    names the classes, each has a score of its own too.
    """
    fields = output if isinstance(output, Mapping) else {None: output}
    shapes = {name: tuple(value.shape) for name, value in fields.items() if isinstance(value, Tensor)}
    logits = next((name for name in (None, "logits") if name in shapes), "")
    boxes = next((name for name, shape in shapes.items() if "box" in str(name) and shape[-1] == 4), None)
    if logits != "" and len(shapes[logits]) == 2:
        return "classify", Answer(logits)
    if logits != "" and boxes is not None and len(shapes[logits]) == 3:
        config: Any = getattr(module, "config", None)
        texts = getattr(config, "text_config", None) is not None
        own = texts or getattr(config, "num_labels", None) == shapes[logits][2]
        return "detect", Answer(logits, boxes, "sigmoid" if own else "softmax")
    return "features", Answer()


def reader(answer: Answer, labels: Mapping[int, str], task: str, output: Any) -> Read:
    """How an output reads as the prediction of ``task``; checked on that of a pass.

    Raises:
        UserError: the ``output`` has no such fields, or other shapes in them.
    """
    detects = task == "detect"
    logits = [_logits_in(output, name, 3 if detects else 2) for name in (answer.logits, answer.boxes)[: 1 + detects]]
    if detects and answer.scores == "softmax" and logits[0].shape[-1] == 1:
        raise UserError(
            "'prediction' reads one class by softmax, whose last class is 'no object', which leaves none: say "
            "scores: sigmoid, or take the logits that 'no object' is among"
        )
    if detects:
        return lambda output, size: detections(output, size, answer, labels)
    return lambda output, _: Classes(read_field(output, answer.logits), labels)


def _logits_in(output: Any, name: int | str | None, axes: int) -> Tensor:
    try:
        value = read_field(output, name)
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"the output has no field '{name}' to predict from: {nearest(str(name), map(str, fields_of(output)))}"
        ) from error
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if not isinstance(value, Tensor) or value.dim() != axes:
        what = "B C for a classifier" if axes == 2 else "B Q C and B Q 4 for a detector"
        raise UserError(f"'prediction' reads {shape} from the output: it has to be {what}, or the task 'features'")
    return value


def detections(output: Any, size: tuple[int, int], answer: Answer, labels: Mapping[int, str]) -> list[Detections]:
    """The likeliest class of every query, and its box in pixels."""
    from torchvision.ops import box_convert

    logits, boxes = read_field(output, answer.logits), read_field(output, answer.boxes)
    likely = logits.sigmoid() if answer.scores == "sigmoid" else logits.softmax(-1)[..., :-1]
    scores, classes = likely.max(-1)
    scale = torch.tensor([size[1], size[0], size[1], size[0]], device=boxes.device)
    corners = box_convert(boxes, "cxcywh", "xyxy") * scale
    return [Detections(*each, labels) for each in zip(corners, scores, classes, strict=True)]

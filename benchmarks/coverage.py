"""``python -m benchmarks.coverage``: how many models of timm and transformers can be staged, none of them downloaded.

Every model is built on torch's meta device, where tensors have shapes and no values, and staged there as `load_model`
would do it. That tells whether it has stages and inverses that fit, not whether `backsight verify` holds.
"""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
import tyro
from scipy.stats import binomtest

from backsight.catalogue import check_inverses
from backsight.io import write_json
from backsight.models import stage

FAMILY, BLOCKS, FAILED = "by a family", "by its blocks", "not"

MAPPINGS = {
    "image classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "object detection": "MODEL_FOR_OBJECT_DETECTION_MAPPING",
    "zero-shot object detection": "MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING",
    "zero-shot image classification": "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING",
    "semantic segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING",
    "depth estimation": "MODEL_FOR_DEPTH_ESTIMATION_MAPPING",
}
"""Those of transformers' mappings whose models read images alone, or images and a text."""

LARGEST = 200_000_000
"""Parameters of a model that is built with real weights where its library cannot do without."""


def count(sample: int = 150, seed: int = 0, json: Path | None = None, only: str = "") -> None:
    """Count what is staged, over timm's published checkpoints and over transformers' types of image models.

    Args:
        sample: How many of timm's checkpoints are drawn at random; 0 takes all of them.
        seed: Of the sample.
        json: Write what was found of every model to a file.
        only: timm or transformers, both if not given.
    """
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    found: dict[str, dict[str, str]] = {}
    if only != "transformers":
        found["timm"] = timm_checkpoints(sample, seed)
    if only != "timm":
        found |= transformers_types()
    print(f"\n| | models | {FAMILY} | {BLOCKS} | {FAILED} | staged |\n| --- | --- | --- | --- | --- | --- |")
    for name, each in found.items():
        counts = Counter(value.partition(":")[0] for value in each.values())
        staged = counts[FAMILY] + counts[BLOCKS]
        low, high = interval(staged, len(each))
        drawn = name == "timm" and sample
        share = f"{staged / len(each):.0%}" + (f" ({low:.0%} to {high:.0%})" if drawn else "")
        print(f"| {name} | {len(each)} | {counts[FAMILY]} | {counts[BLOCKS]} | {counts[FAILED]} | {share} |")
    if json is not None:
        write_json(json, found)


def timm_checkpoints(sample: int, seed: int) -> dict[str, str]:
    """How each of a random ``sample`` of timm's published checkpoints is staged; an architecture is tried once."""
    names = sorted(timm.list_pretrained())
    drawn = sorted(random.Random(seed).sample(names, sample)) if sample else names
    print(f"timm {timm.__version__}: {len(drawn)} of {len(names)} checkpoints")
    by_architecture: dict[str, str] = {}
    for name in drawn:
        architecture = name.partition(".")[0]
        if architecture not in by_architecture:
            by_architecture[architecture] = attempt(architecture, lambda name=architecture: timm.create_model(name))
    return {name: by_architecture[name.partition(".")[0]] for name in drawn}


def transformers_types() -> dict[str, dict[str, str]]:
    """How each type in transformers' mappings is staged, in the configuration that its library has by default."""
    print(f"transformers {transformers.__version__}")
    found: dict[str, dict[str, str]] = {}
    tried: dict[type, str] = {}
    for task, mapping in MAPPINGS.items():
        found[f"transformers, {task}"] = {}
        for config, kind in getattr(transformers, mapping).items():
            kind = (kind if isinstance(kind, Sequence) else (kind,))[0]
            if kind not in tried:
                tried[kind] = attempt(kind.__name__, lambda config=config, kind=kind: kind(_configured(config)))
            found[f"transformers, {task}"][config.model_type] = tried[kind]
    return found


def _configured(kind: Any) -> Any:
    config = kind()
    if getattr(config, "use_pretrained_backbone", None):
        config.use_pretrained_backbone = False
    return config


def attempt(name: str, build: Callable[[], Any]) -> str:
    """How the model that ``build`` makes is staged, or ``not: `` why."""
    try:
        return _staged(build, "meta")
    except Exception as error:  # of any library, about anything
        reason = _line(error)
    if "meta" in reason or "Tensor.item" in reason or "data_ptr" in reason or "NotImplemented" in reason:
        try:
            with torch.device("meta"):
                parameters = sum(each.numel() for each in build().parameters())
            reason = f"{parameters} parameters, {reason}" if parameters > LARGEST else ""
            if not reason:
                return _staged(build, "cpu")
        except Exception as error:
            reason = _line(error)
    print(f"  {name}: {reason}", file=sys.stderr, flush=True)
    return f"{FAILED}: {reason}"


def _staged(build: Callable[[], Any], device: str) -> str:
    with torch.device(device), torch.no_grad():
        module = build().eval()
    model = stage(module)
    check_inverses(model)
    return FAMILY if hasattr(model, "family") else BLOCKS


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def interval(hits: int, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not number:
        return 0.0, 1.0
    found = binomtest(hits, number).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


if __name__ == "__main__":
    tyro.cli(count)

"""Pictures and what is known of them, from wherever they are: ``open_data("folder:photos", model.pixels)``."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable
from pathlib import Path

from backsight.core import Pixels, UserError
from backsight.data.base import Batch, ImageData, Sample, Splits, Target, collate, mean_of, sum_images
from backsight.data.coco import open_coco
from backsight.data.decode import UnreadableImage, jpeg_decoder, read_image
from backsight.data.folder import check_folder, find_pictures, load_images, open_folder
from backsight.data.hf import open_huggingface, open_parquet, open_stream
from backsight.data.labels import Vocabulary, outside
from backsight.data.loader import batches, loader
from backsight.data.resize import fit, fit_target
from backsight.data.source import Reading
from backsight.data.streams import Stream
from backsight.data.tar import open_tar
from backsight.data.voc import open_voc
from backsight.data.world import open_world
from backsight.data.yolo import open_yolo

__all__ = [
    "DATA",
    "FORMS",
    "Batch",
    "ImageData",
    "Reading",
    "Sample",
    "Splits",
    "Stream",
    "Target",
    "UnreadableImage",
    "Vocabulary",
    "batches",
    "check_data",
    "collate",
    "find_pictures",
    "fit",
    "fit_target",
    "load_images",
    "loader",
    "mean_of",
    "open_data",
    "read_image",
    "sum_images",
]


logger: logging.Logger = logging.getLogger(__name__)


DATA: dict[str, Callable[[str, Reading], Splits]] = {
    "coco": open_coco,
    "folder": open_folder,
    "hf": open_huggingface,
    "parquet": open_parquet,
    "stream": open_stream,
    "voc": open_voc,
    "wds": open_tar,
    "world": lambda spec, reading: open_world(spec, reading.pixels.size),
    "yolo": open_yolo,
}
"""What stands before the colon of a data specification -> what opens it."""

READ_ONCE = ("coco", "folder", "voc", "wds", "yolo")
"""Data that one process can open for all: what it found, sent to another machine, finds the same files there."""

SIGNS = {
    "annotations/*.json": "coco",
    "*/_annotations.coco.json": "coco",
    "Annotations/*.xml": "voc",
    "data.yaml": "yolo",
    "*.parquet": "parquet",
}
"""What tells which kind of data a folder has."""

FORMS = (
    "coco:DIR[:SPLIT], coco:IMAGES:JSON, voc:DIR[:SPLIT], yolo:DIR[:SPLIT], folder:DIR, hf:NAME[:SPLIT], "
    "parquet:FILE_OR_DIR, stream:NAME, wds:PATTERN, world"
)
"""The data specifications there are, for help texts."""


def open_data(
    spec: str,
    pixels: Pixels,
    *,
    seed: int = 0,
    strict: bool = False,
    masks: bool = False,
    vocabulary: Vocabulary | None = None,
) -> Splits:
    """Open a data set for a model: train, validation and test, disjoint by id.

    Args:
        spec: one of :data:`FORMS`.
        pixels: what the model expects of an image; the samples are resized to it.
        seed: of the division, where the data do not come in parts.
        strict: fail at the first picture that cannot be read, instead of naming, skipping and counting it.
        masks: draw the objects' masks too, ``n H W``, where they have outlines; inverses need none.
        vocabulary: of the model whose answers are compared with what the data know
            (:func:`~backsight.models.vocabulary`): classes are then counted as the model does. Those that it has not
            are named in the log. Otherwise as the data do.

    Raises:
        UserError: there is no such kind of data, or nothing of it where the specification points.
    """
    kind, spec = check_data(spec)
    if kind != "world":
        jpeg_decoder()  # so that it is chosen, and told, before there are workers
    splits = DATA[kind](spec, Reading(pixels, seed, strict, masks, vocabulary or {}))
    classes, known = splits.train.classes, outside(vocabulary or {})
    names = [name for label, name in classes.items() if label >= known]
    if vocabulary and names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        logger.warning("%s: the model has no class for %d of the %d there: %s", spec, len(names), len(classes), shown)
    return splits


def check_data(spec: str) -> tuple[str, str]:
    """The kind of a specification, and itself with ``~`` expanded; what can be told without a model is checked.

    Raises:
        UserError: there is no such kind of data or world, or no folder where the specification says.
    """
    kind, _, rest = spec.partition(":")
    if kind not in DATA:
        raise UserError(f"'{spec}' is no data specification: {_suggestion(spec)}")
    if kind != "world" and not rest:
        raise UserError(f"'{spec}' does not say where the data is: data is one of {FORMS}")
    if rest.startswith("~"):  # which no shell expands behind a colon
        spec = f"{kind}:{Path(rest).expanduser()}"
    if kind == "folder":
        check_folder(Path(spec.partition(":")[2]))
    elif kind == "world":
        open_world(spec)  # draws nothing
    return kind, spec


def _suggestion(spec: str) -> str:
    """What was probably meant."""
    kind, colon, rest = spec.partition(":")
    path = Path(spec)
    if path.suffix == ".parquet":
        return f"say 'parquet:{spec}'"
    if spec and path.is_dir():
        word = next((word for sign, word in SIGNS.items() if next(path.glob(sign), None) is not None), "folder")
        return f"say '{word}:{spec}'"
    close = difflib.get_close_matches(kind.lower(), DATA, n=1)
    if close:
        return f"did you mean '{close[0]}{colon}{rest}'?"
    return f"data is one of {FORMS}"

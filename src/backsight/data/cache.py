"""Pictures at the model's size, kept on disk, so that later epochs and runs need not decode and resize them again."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from backsight.core import Pixels
from backsight.data.base import ImageData, Sample, Target
from backsight.io import write_bytes

logger: logging.Logger = logging.getLogger(__name__)

IMAGE, VALID = "image", "valid"
"""The tensors of a file beside those of the target."""

FORMAT = 2
"""The version of the files' format: those of another lie in another folder, and are not read."""

IN_A_FOLDER = 1000
"""Files of one folder: some systems are slow with more."""


class ImageCache:
    """The same images as ``data`` gives, each in a file of its own once it has been read.

    A file that is damaged (its checksum is not the one in it) is made again. Several processes may write at once.

    Args:
        data: where the images come from.
        pixels: how ``data`` fits them.
        folder: one of many; each data set and size has a folder of its own in it.
        limit: the most bytes that are written, the annotations of images counted as nothing.
        fingerprint: that of ``data``, where it is known.
    """

    def __init__(
        self, data: ImageData, pixels: Pixels, folder: Path, limit: float, fingerprint: str | None = None
    ) -> None:
        self.data: ImageData = data
        self.name: str = data.name
        self.classes: Mapping[int, str] = data.classes
        own = sorted(asdict(pixels).items()), sorted(data.classes.items())
        facts = f"{FORMAT} {fingerprint or data.fingerprint()} {own[0]} {own[1]}"
        self.folder: Path = folder / hashlib.sha256(facts.encode()).hexdigest()[:16]
        self.allowed: int = int(limit // (3 * pixels.size[0] * pixels.size[1]))

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        """What else ``data`` has: the ids, the pictures that cannot be read."""
        if name == "data":  # while it is unpickled in a worker
            raise AttributeError(name)
        return getattr(self.data, name)

    def fingerprint(self) -> str:
        """That of the data."""
        return self.data.fingerprint()

    def __getitem__(self, index: int) -> Sample | None:
        index = range(len(self))[index]
        if index >= self.allowed:
            return self.data[index]
        path = self.folder / f"{index // IN_A_FOLDER:06d}" / f"{index % IN_A_FOLDER:03d}.safetensors"
        sample = read_sample(path) if path.is_file() else None
        if sample is None and (sample := self.data[index]) is not None:
            write_bytes(path, pack_sample(sample))
        return sample


def pack_sample(sample: Sample) -> bytes:
    """A sample as the content of a file."""
    tensors = {IMAGE: sample.image, **sample.target.tensors()}
    if sample.valid is not None:
        tensors[VALID] = sample.valid
    words = {"id": sample.id, "crc32": str(_checksum(sample.image))}
    if sample.target.label is not None:
        words["label"] = str(sample.target.label)
    return save({name: value.contiguous() for name, value in tensors.items()}, words)


def read_sample(path: Path) -> Sample | None:
    """What :func:`pack_sample` made; None if the file is damaged."""
    try:
        with safe_open(path, "pt") as file:  # mapped, wherever an image lies: batches are copies of them
            words: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        image, valid = tensors.pop(IMAGE), tensors.pop(VALID, None)
        if str(_checksum(image)) != words["crc32"]:
            raise ValueError("the checksum differs")
        label = int(words["label"]) if "label" in words else None
        return Sample(image, words["id"], Target.of(tensors, label), valid)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        logger.warning("%s is damaged (%s): the picture is read again", path, error)
        return None


def _checksum(image: Tensor) -> int:
    return zlib.crc32(image.contiguous().numpy().data) if image.dtype == torch.uint8 else 0

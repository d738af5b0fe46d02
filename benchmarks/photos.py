"""Pictures that cost what photos cost to decode, made on the spot: nothing has to be fetched to measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

QUALITY = 90
"""Of the JPEG files, as cameras and COCO have it."""


def write_photos(folder: Path, count: int, size: tuple[int, int] = (480, 640), seed: int = 0) -> Path:
    """``count`` JPEG files of ``size`` (H, W) in ``folder``; a file of 480 x 640 has about 150 kB, as COCO's photos do.

    Amplitudes fall as 1 / frequency, as they do in photos, and with them goes what a decoder has to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(_photo(size, generator)).save(folder / f"{index:04d}.jpg", quality=QUALITY)
    return folder


def _photo(size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """``H W 3`` uint8."""
    down, across = np.meshgrid(np.fft.fftfreq(size[0]), np.fft.rfftfreq(size[1]), indexing="ij")
    falling = 1 / np.maximum(np.hypot(down, across), 1 / max(size))
    noise = np.fft.rfft2(generator.standard_normal((3, *size)))
    picture = np.fft.irfft2(noise * falling, s=size)
    shared = picture[:1] + 0.3 * picture  # the channels of photos are much alike
    values = 128 + 48 * shared / shared.std()
    return values.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)

"""Pictures for the tests of data: drawn ones, and the way to the real ones where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from backsight.core import Pixels
from backsight.data import open_data


def drawn(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture with soft colours, sharp edges and fine grain, as photos have them."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = int(generator.integers(0, width)), int(generator.integers(0, height))
        colour = tuple(generator.integers(0, 256, 3).tolist())
        draw.ellipse((x, y, x + width // 4, y + height // 5), fill=colour)
    grain = generator.normal(0, 6, (height, width, 3))
    image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(0.4))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """A picture as the content of a file."""
    content = BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def save_pictures(folder: Path, names: Iterable[str], size: tuple[int, int] = (24, 32)) -> Path:
    """A different drawn picture under every name below ``folder``."""
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn(*size, seed=seed).save(path)
    return folder


def real_data(name: str) -> Path:
    """The folder of a real data set, or a skipped test that names it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("BACKSIGHT_TEST_DATA", beside)) / name
    if not path.is_dir():
        pytest.skip(f"needs the real data set {name} (below $BACKSIGHT_TEST_DATA)")
    return path


def opened(spec: str, pixels: Pixels, **options: Any) -> Any:
    """``open_data``, of whose parts the tests may ask for more than every data set has."""
    return open_data(spec, pixels, **options)

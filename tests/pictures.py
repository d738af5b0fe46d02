"""Pictures for the tests of data: drawn ones, and the way to the real ones where they are at hand."""

from __future__ import annotations

import json
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


def annotated(spec: str, pixels: Pixels, **options: Any) -> dict[str, Any]:
    """The samples of all parts by id, those that can be read."""
    splits = opened(spec, pixels, **options)
    parts = [splits.train, splits.validation, splits.test]
    samples = [part[index] for part in parts for index in range(len(part))]
    return {sample.id: sample for sample in samples if sample is not None}


def write_coco(folder: Path, split: str, num_images: int, **changes: Any) -> Path:
    """``num_images`` photos of 48 x 64 pixels in COCO's layout; photo i has i + 1 objects."""
    images = [{"id": 100 + i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in range(num_images)]
    save_pictures(folder / split, [image["file_name"] for image in images], (48, 64))
    objects = [(image["id"], k) for i, image in enumerate(images) for k in range(i + 1)]
    annotations = [
        {"id": n, "image_id": image, "category_id": 3 + 4 * (k % 2), "bbox": [k, 2, 10, 20], "iscrowd": int(k == 2)}
        | {"segmentation": [[k, 2, k + 10, 2, k + 10, 22, k, 22]]}
        for n, (image, k) in enumerate(objects)
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    content = {"images": images, "annotations": annotations[::-1], "categories": categories} | changes
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return folder

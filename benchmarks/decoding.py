"""Reading pictures, one core: ours against the decoder alone."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from backsight.core import Pixels
from backsight.data import Sample, Target, fit, read_image
from backsight.data.cache import pack_sample, read_sample
from backsight.data.world import World
from backsight.io import write_bytes
from benchmarks.measure import Ratio, Side, quotients, seconds
from benchmarks.photos import write_photos
from benchmarks.settings import Settings

NUM_PICTURES = 24
SIZES = {"480x640": (480, 640), "224x224": (224, 224)}
"""What pictures of 480 x 640 are brought to: DETR's size, ViT's."""


def measure(settings: Settings) -> list[Ratio]:
    """Pictures a second of ours over libjpeg-turbo's bare rate; of the drawn world over reading as small pictures."""
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(write_photos(Path(folder), NUM_PICTURES).iterdir())
        contents = [path.read_bytes() for path in files]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*_photos(contents, settings), *_world(settings)]
    finally:
        torch.set_num_threads(threads)


def _photos(contents: list[bytes], settings: Settings) -> list[Ratio]:
    bare = "libjpeg-turbo alone"
    sides: dict[str, Side] = {
        bare: lambda: [Image.open(io.BytesIO(each)).load() for each in contents],
        "Pillow": lambda: [np.array(Image.open(io.BytesIO(each)).convert("RGB")) for each in contents],
        "read": lambda: [read_image(each) for each in contents],
    }
    for word, size in SIZES.items():
        sides[f"read and fit to {word}"] = lambda size=size: [fit(read_image(c), Pixels(size)) for c in contents]
    with tempfile.TemporaryDirectory() as folder:
        sample = Sample(fit(read_image(contents[0]), Pixels(SIZES["480x640"])), "one", Target())
        path = write_bytes(Path(folder, "one.safetensors"), pack_sample(sample))
        sides["read from the image cache at 480x640"] = lambda: [read_sample(path) for _ in contents]
        spent = seconds(sides, settings.rounds, clock="cpu")
    return [
        Ratio(
            f"data/{side}",
            quotients(spent[bare], spent[side]),
            "pictures (480 x 640) a second of CPU, over those that libjpeg-turbo alone decodes",
            amounts={"pictures/s": len(contents) / median(spent[side])},
        )
        for side in sides
        if side != bare
    ]


def _world(settings: Settings) -> list[Ratio]:
    """Scenes are drawn as they are asked for: that has to be about as quick as reading files of that size."""
    world = World()
    number = 4 * NUM_PICTURES
    stream = io.BytesIO()
    picture = (world.batch([0]).images[0] * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(stream, "JPEG", quality=90)
    sides: dict[str, Side] = {
        "read": lambda: [read_image(stream.getvalue()) for _ in range(number)],
        "draw": lambda: world.batch(range(number)),
    }
    spent = seconds(sides, settings.rounds, clock="cpu")
    return [
        Ratio(
            "data/draw the world",
            quotients(spent["read"], spent["draw"]),
            "scenes (96 x 96, with masks) drawn in a second of CPU, over JPEG files of them read",
            amounts={"scenes/s": number / median(spent["draw"])},
        )
    ]

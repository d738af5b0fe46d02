"""Any picture file -> RGB in uint8, or one line that says why not."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from backsight.core import UserError

logger: logging.Logger = logging.getLogger(__name__)

WHITE = (255, 255, 255, 255)

LONGEST = 100
"""How many times as long as wide a picture may be: cropping scales the shorter side to the model's size."""

EXTRA = {".heic": "'backsight[heif]'", ".heif": "'backsight[heif]'", ".avif": "'pillow>=11.3'"}
"""What the names of pictures end in that only some installations read -> what to install."""

BRANDS = dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1", b"msf1"), ".heic") | {b"avif": ".avif", b"avis": ".avif"}
"""How such files begin, after their length and ``ftyp``."""


class UnreadableImage(UserError):
    """A picture that cannot be decoded. The message names the file and the cause, in one line."""


def read_image(source: str | Path | bytes, *, name: str | None = None, upright: bool = True) -> Tensor:
    """A picture file, or its bytes, -> ``3 H W`` uint8, RGB in 0..255.

    Greyscale, palettes and CMYK become RGB (embedded colour profiles are ignored, as the model libraries do),
    transparency is laid on white, 16 bits are scaled to 8, of an animation the first frame is taken.

    Args:
        source: a path, or the content of a file.
        name: what to call the picture in an error; the path by default.
        upright: turn the picture as its EXIF orientation says.

    Raises:
        UnreadableImage: there is no such file, or it is no picture, broken, larger than Pillow's limit against
            decompression bombs (179 megapixels), or more than :data:`LONGEST` times as long as wide.
    """
    name = name or ("an image" if isinstance(source, bytes) else str(source))
    content = b""
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        # Pillow warns of odd metadata and of large pictures: neither hinders the pixels.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(content, upright)
    except Exception as error:  # decoders meet broken bytes with nearly every type of exception there is
        raise UnreadableImage(f"cannot read {name}: {_cause(error, content)}") from error


def _decode(content: bytes, upright: bool) -> Tensor:
    if not content:
        raise ValueError("the file is empty")
    missing_decoders()
    with Image.open(BytesIO(content)) as image:  # reads the header only, and refuses bombs
        if max(image.size) > LONGEST * min(image.size):
            raise ValueError(f"it is {image.width} x {image.height}: more than {LONGEST} times as long as wide")
        quick = jpeg_decoder() if upright and image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB") else None
        if quick:
            with suppress(Exception):  # Pillow has the last word on a broken file, and better words for it
                return quick(content)
        return _decode_by_pillow(image, upright)


@cache
def missing_decoders() -> dict[str, str]:
    """The suffixes of :data:`EXTRA` that cannot be read here -> what to install. Pillow gets to know the others."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]

        register_heif_opener()
    Image.init()
    there = Image.registered_extensions()
    return {suffix: f"pip install {what} to read them" for suffix, what in EXTRA.items() if suffix not in there}


@cache
def jpeg_decoder() -> Callable[[bytes], Tensor] | None:
    """torchcodec's, which turns a picture upright, where it is installed and works; None: Pillow's.

    Both give the same values to the bit; torchcodec takes 2.9 ms for a COCO photo, Pillow 3.4.
    """
    sample = BytesIO()
    Image.new("RGB", (8, 8)).save(sample, "JPEG")
    try:
        from torchcodec.decoders import decode_jpeg  # pyright: ignore[reportMissingImports]

        decode_jpeg(sample.getvalue())
    except Exception:  # it is not there, of a version before 0.16, or built for another torch
        logger.info("JPEG files are decoded by Pillow")
        return None
    logger.info("JPEG files are decoded by torchcodec")
    return decode_jpeg


def _decode_by_pillow(image: Image.Image, upright: bool) -> Tensor:
    image.load()
    if upright:
        with suppress(Exception):  # metadata that Pillow cannot write again, once it has turned the picture
            ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    image = image if image.mode == "RGB" else image.convert("RGB")  # which copies in any case
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 0..65535, or of 0..1 in floating point, -> 0..255; Pillow itself would clip them."""
    values = np.asarray(image).astype(np.float64)
    limit = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= limit):
        raise ValueError(f"its grey values ({values.min():g} to {values.max():g}) lie outside 0 to {limit:g}")
    return Image.fromarray(np.rint(values * (255 / limit)).astype(np.uint8))


def _cause(error: Exception, content: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        kind = BRANDS.get(content[8:12]) if content[4:8] == b"ftyp" else None
        if kind in missing_decoders():
            return f"it is a {kind} picture: {missing_decoders()[kind]}"
        return "it is not a picture in any known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    words = " ".join(str(error).split()) or type(error).__name__
    return words[0].lower() + words[1:]

"""Images that visitors upload: what is accepted, and how long it is kept.

An upload is named by the digest of its bytes, so a link to it is of use only to whoever had the link or the image.
Nothing is written to the disk, and what exceeds the memory set aside for uploads is forgotten, the oldest use first.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO

from torch import Tensor

from backsight.app.security import MAX_UPLOAD
from backsight.core import Pixels, UserError
from backsight.data import fit, read_image
from backsight.data.resize import valid_pixels

MAX_PIXELS = 40_000_000
"""The largest picture that is decoded; its header states how large it is, before any memory is taken."""
MAX_PROPORTION = 20
"""How many times longer than wide (or wider than long) a picture may be: a strip would grow when it is resized."""
KEPT_BYTES = 256 << 20
"""Of the files of all visitors together."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow may take a file for. Read from the content: a name proves nothing."""
PREFIX = "upload-"
"""What the names of uploads begin with."""

_decoding = threading.Lock()  # one at a time: a bound on memory


@dataclass(frozen=True)
class Upload:
    """The bytes of an accepted picture, and its name: ``upload-`` and the digest of its bytes."""

    name: str
    content: bytes

    def fitted(self, pixels: Pixels) -> tuple[Tensor, Tensor | None]:
        """The picture at a model's size, ``3 H W`` in [0, 1], and where it is valid (None: everywhere)."""
        with _decoding:
            picture = read_image(self.content, name="this picture")
            valid = valid_pixels((picture.shape[-2], picture.shape[-1]), pixels) if pixels.fit == "pad" else None
            return fit(picture, pixels).float() / 255, valid


def accept(content: bytes) -> Upload:
    """Accept a file that is a picture, of a size that can be handled, and whole.

    Raises:
        UserError: it is not.
    """
    if len(content) > MAX_UPLOAD:
        raise UserError(f"this file is too large: at most {MAX_UPLOAD >> 20} MB are accepted; make it smaller first")
    _check_header(content)
    with _decoding:
        read_image(content, name="this picture")
    return Upload(PREFIX + hashlib.sha256(content).hexdigest()[:32], content)


def _check_header(content: bytes) -> None:
    from PIL import Image, UnidentifiedImageError

    limit = f"at most {MAX_PIXELS // 1_000_000} megapixels are accepted; make it smaller first"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise UserError(f"this picture is too large; {limit}") from error
    except UnidentifiedImageError as error:
        raise UserError("this is no picture that can be read: JPEG, PNG, WebP, GIF, BMP and TIFF can") from error
    except Exception as error:  # broken headers raise nearly every type of exception there is
        raise UserError("this picture is broken: save it anew, as PNG or JPEG") from error
    if width * height > MAX_PIXELS:
        raise UserError(f"this picture is too large: it has {width} x {height} pixels; {limit}")
    if max(width, height) > MAX_PROPORTION * min(width, height):
        raise UserError(
            f"this picture is too narrow: it has {width} x {height} pixels; one side may be at most {MAX_PROPORTION} "
            "times the other; cut it first"
        )


class Uploads:
    """The pictures of all visitors by name, in bounded memory."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit: int = limit
        self.size: int = 0
        self._by_name: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, upload: Upload) -> None:
        """Keep a picture, forgetting those that were used longest ago where there is no more room."""
        with self._lock:
            if upload.name not in self._by_name:
                self.size += len(upload.content)
            self._by_name[upload.name] = upload
            self._by_name.move_to_end(upload.name)
            while self.size > self.limit and len(self._by_name) > 1:
                self.size -= len(self._by_name.popitem(last=False)[1].content)

    def find(self, name: str) -> Upload:
        """The picture called ``name``.

        Raises:
            UserError: it is not here, or no more.
        """
        with self._lock:
            if name not in self._by_name:
                raise UserError("the picture of this link is no longer kept here: upload it again, and the link works")
            self._by_name.move_to_end(name)
            return self._by_name[name]

"""Pictures that visitors hand in: what is let in, and how long it is kept.

A picture is known by the digest of its bytes, so a link to it is of use only to whoever had the link or the picture.
Nothing is written to the disk, and what exceeds the memory set aside for pictures is forgotten, the oldest use first.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO

from torch import Tensor

from backsight.core import UserError
from backsight.data import read_image

MEGABYTE = 1 << 20
MAX_BYTES = 20 * MEGABYTE
"""The largest file that is let in."""
MAX_PIXELS = 40_000_000
"""The largest picture that is decoded; its header says how large it is, before any memory is taken."""
KEPT_BYTES = 256 * MEGABYTE
"""Of the files of all visitors together."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow may take a file for. Told from the content: a name proves nothing."""
PREFIX = "upload-"
"""What the names of pictures of visitors begin with."""

_decoding = threading.Lock()  # one at a time: a bound on memory


@dataclass(frozen=True)
class Upload:
    """The bytes of a picture that was let in, and its name: ``upload-`` and the digest of its bytes."""

    name: str
    content: bytes


def admit(content: bytes) -> Upload:
    """Let a picture in if it is one, of a size that can be handled, and whole.

    Raises:
        UserError: it is not; the message says which in one line.
    """
    check_bytes(len(content))
    _check_header(content)
    decode(content)
    return Upload(PREFIX + hashlib.sha256(content).hexdigest()[:32], content)


def check_bytes(count: int) -> None:
    """Refuse a file of ``count`` bytes that is too large.

    Raises:
        UserError: it is.
    """
    if count > MAX_BYTES:
        raise UserError(f"this file is too large: at most {MAX_BYTES // MEGABYTE} MB are taken; make it smaller first")


def decode(content: bytes) -> Tensor:
    """``3 rows columns`` uint8, one picture at a time.

    Raises:
        UserError: the picture is broken.
    """
    with _decoding:
        return read_image(content, name="this picture")


def _check_header(content: bytes) -> None:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise UserError(_too_large()) from error
    except UnidentifiedImageError as error:
        raise UserError("this is no picture that can be read: JPEG, PNG, WebP, GIF, BMP and TIFF can") from error
    except Exception as error:  # broken headers raise nearly every type of exception there is
        raise UserError("this picture is broken: save it anew, as PNG or JPEG") from error
    if width * height > MAX_PIXELS:
        raise UserError(_too_large(f": it has {width} x {height} pixels"))


def _too_large(size: str = "") -> str:
    limit = MAX_PIXELS // 1_000_000
    return f"this picture is too large{size}; at most {limit} megapixels are taken; make it smaller first"


class Uploads:
    """The pictures of all visitors by name, in bounded memory."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, upload: Upload) -> None:
        """Keep a picture, forgetting those that were used longest ago where there is no more room."""
        with self._lock:
            if upload.name not in self._kept:
                self.size += len(upload.content)
            self._kept[upload.name] = upload
            self._kept.move_to_end(upload.name)
            while self.size > self.limit and len(self._kept) > 1:
                self.size -= len(self._kept.popitem(last=False)[1].content)

    def find(self, name: str) -> Upload:
        """The picture called ``name``.

        Raises:
            UserError: it is not here, or no more.
        """
        with self._lock:
            if name not in self._kept:
                raise UserError("the picture of this link is no longer kept here: hand it in again, and the link works")
            self._kept.move_to_end(name)
            return self._kept[name]

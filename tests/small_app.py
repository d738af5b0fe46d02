"""A small workspace of the web page: a detector and a classifier with chains whose answer is known."""

from __future__ import annotations

import io
import struct
import zlib
from functools import lru_cache

from PIL import Image

from backsight.app.model_view import ModelView
from backsight.app.uploads import Uploads
from backsight.app.workspace import ImageLibrary, Workspace
from backsight.data.world import World
from backsight.experiments.subject import Subject
from small import build_small
from stand_in_chains import Painter, paint_input


def small_view(family: str, cache: int = 64 << 20, seeds: int = 2) -> ModelView:
    """Random weights of a family; its chains paint the very image, and grey from features that were changed."""
    model = build_small(family)
    world = World(size=model.pixels.size, seed=2, length=12, single=model.spec.task == "classify")
    subject = Subject(model, Painter(model, paint_input(model), seeds), world, num_images=4)
    return ModelView(subject, cache=cache)


def small_workspace() -> Workspace:
    """Both models, and the images of their worlds: ``world-prior/0`` ... and ``world-prior-single/0`` ..."""
    images = ImageLibrary(Uploads())
    models = [small_view("detr"), small_view("vit")]
    names = [images.add(each.subject.data.name, each.model.pixels, each.subject.data) for each in models]
    return Workspace(list(zip(models, names, strict=True)), images)


def png(colour: tuple[int, int, int] = (200, 60, 30), size: tuple[int, int] = (40, 30)) -> bytes:
    """A picture of one colour, (width, height) ``size``."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


@lru_cache
def grey_png(width: int = 20_000, height: int = 10_000) -> bytes:
    """A whole grey PNG of, by default, 200 megapixels in less than a megabyte."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    deflate = zlib.compressobj(1)
    rows = b"".join(deflate.compress(bytes(width + 1)) for _ in range(height)) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'

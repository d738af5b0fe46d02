"""What visitors hand in: pictures are let in, everything else is told why not, and memory stays bounded."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from backsight.app import intake
from backsight.app.intake import Uploads, admit
from backsight.app.sources import Pictures
from backsight.core import Pixels, UserError
from backsight.data import fit
from small_observatory import SVG, bomb, png


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    noise = torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_are_let_in_whatever_they_are_called(kind: str) -> None:
    upload = admit(encoded(kind))
    assert upload.name.startswith("upload-")
    assert upload.content == encoded(kind)


def test_the_same_bytes_have_the_same_name() -> None:
    assert admit(png()).name == admit(png()).name != admit(png((1, 2, 3))).name


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"just some words", "this is no picture that can be read: JPEG, PNG, WebP, GIF, BMP and TIFF can"),
        (b"", "this is no picture that can be read"),
        (SVG, "this is no picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "this is no picture that can be read"),
        (encoded("JPEG")[:700], "cannot read this picture: image file is truncated"),
        (encoded("PNG")[:500], "cannot read this picture"),
        (bomb(), "this picture is too large"),
        (bomb(10_000, 5_000), "this picture is too large: it has 10000 x 5000 pixels; at most 40 megapixels are taken"),
        (bytes(intake.MAX_BYTES + 1), "this file is too large: at most 20 MB are taken"),
    ],
    ids=["text", "empty", "svg", "eps", "truncated jpeg", "truncated png", "bomb", "large", "heavy"],
)
def test_everything_else_is_told_why_not(content: bytes, says: str) -> None:
    with pytest.raises(UserError) as error:
        admit(content)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bomb_takes_no_memory() -> None:
    content = bomb()
    peak = peak_memory()
    for _ in range(3):
        with pytest.raises(UserError, match="too large"):
            admit(content)
    assert peak_memory() - peak < 20 << 20  # its pixels are 200 MB


def peak_memory() -> int:
    """The most memory this process ever had, in bytes."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("this system does not say how much memory a process had")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_what_exceeds_the_memory_is_forgotten_oldest_use_first() -> None:
    pictures = [admit(png((level, 0, 0))) for level in range(4)]
    uploads = Uploads(limit=3 * max(len(each.content) for each in pictures))
    for each in pictures[:3]:
        uploads.keep(each)
    uploads.find(pictures[0].name)
    uploads.keep(pictures[3])
    assert uploads.find(pictures[0].name) == pictures[0]
    assert uploads.size <= uploads.limit
    with pytest.raises(UserError, match="no longer kept here: hand it in again"):
        uploads.find(pictures[1].name)
    uploads.keep(pictures[3])
    assert uploads.size == sum(len(each.content) for each in (pictures[0], pictures[2], pictures[3]))


def test_a_model_gets_an_upload_as_it_gets_any_picture() -> None:
    uploads = Uploads()
    upload = admit(encoded("PNG"))
    uploads.keep(upload)
    pixels = Pixels((24, 24), fit="pad")
    source = Pictures(uploads).get(upload.name, pixels)
    assert torch.equal(source.image, fit(intake.decode(upload.content), pixels).float() / 255)
    assert source.valid is not None
    assert source.valid.sum() == 18 * 24


def test_data_sets_are_named_without_their_folders() -> None:
    pictures = Pictures(Uploads(), lambda spec, pixels: [])
    pixels = Pixels((8, 8))
    assert pictures.add("coco:/srv/secret/photos:val2017", pixels) == "coco-photos-val2017"
    assert pictures.add("folder:/other/photos", pixels) == "folder-photos"
    assert pictures.add("folder:/srv/secret/photos", pixels) == "folder-photos-2"
    assert pictures.add("folder:/other/photos", pixels) == "folder-photos"
    with pytest.raises(UserError, match="'folder-photos' has the pictures 0 to -1"):
        pictures.get("folder-photos/7", pixels)


@pytest.mark.parametrize("name", ["folder:/etc/1", "../../etc/passwd", "/etc/passwd", "nowhere/0", "world/²"])
def test_visitors_reach_no_other_pictures(name: str) -> None:
    with pytest.raises(UserError, match="are offered here: take one of the examples"):
        Pictures(Uploads()).get(name, Pixels((8, 8)))

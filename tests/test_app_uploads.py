"""What visitors upload: pictures are accepted, everything else is refused with a reason, and memory stays bounded."""

from __future__ import annotations

import io
from typing import cast

import pytest
import torch
from PIL import Image

from backsight.app import uploads
from backsight.app.security import MAX_UPLOAD
from backsight.app.uploads import MAX_PROPORTION, Uploads, accept
from backsight.app.workspace import ImageLibrary
from backsight.core import Pixels, UserError
from backsight.data import ImageData, fit, read_image
from small_app import SVG, grey_png, png


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    noise = torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_common_formats_are_accepted(kind: str) -> None:
    upload = accept(encoded(kind))
    assert upload.name.startswith("upload-")
    assert upload.content == encoded(kind)


def test_the_name_follows_from_the_content() -> None:
    assert accept(png()).name == accept(png()).name != accept(png((1, 2, 3))).name


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"just some words", "no picture that can be read"),
        (b"", "no picture that can be read"),
        (SVG, "no picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no picture that can be read"),
        (encoded("JPEG")[:700], "truncated"),
        (encoded("PNG")[:500], "cannot read"),
        (grey_png(), "too large"),
        (grey_png(10_000, 5_000), "10000 x 5000 pixels"),
        (grey_png(1, 39_999), "too narrow"),
        (grey_png(200_000, 1), "too narrow"),
        (bytes(MAX_UPLOAD + 1), "at most 20 MB"),
    ],
    ids=["text", "empty", "svg", "eps", "cut jpeg", "cut png", "bomb", "large", "column", "row", "heavy"],
)
def test_everything_else_is_refused_in_one_line(content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        accept(content)


def test_the_header_decides_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "read_image", None)
    for content in (grey_png(), grey_png(1, 39_999)):
        with pytest.raises(UserError):
            accept(content)


def test_the_longest_proportion_is_accepted() -> None:
    assert accept(grey_png(MAX_PROPORTION, 1)).name


def test_the_oldest_use_is_forgotten_first() -> None:
    pictures = [accept(png((level, 0, 0))) for level in range(4)]
    kept = Uploads(limit=3 * max(len(each.content) for each in pictures))
    for each in pictures[:3]:
        kept.keep(each)
    kept.find(pictures[0].name)
    kept.keep(pictures[3])
    kept.keep(pictures[3])  # a second time takes no more room
    assert kept.find(pictures[0].name) == pictures[0]
    assert kept.size == sum(len(each.content) for each in (pictures[0], pictures[2], pictures[3])) <= kept.limit
    with pytest.raises(UserError, match="no longer kept"):
        kept.find(pictures[1].name)


def test_an_upload_is_fitted_as_any_image() -> None:
    kept, upload = Uploads(), accept(encoded("PNG"))
    kept.keep(upload)
    pixels = Pixels((24, 24), fit="pad")
    image = ImageLibrary(kept).get(upload.name, pixels)
    assert torch.equal(image.pixels, fit(read_image(upload.content), pixels).float() / 255)
    assert image.valid.sum() == 18 * 24


def test_data_sets_are_named_without_their_folders() -> None:
    images, none = ImageLibrary(Uploads()), cast(ImageData, [])
    specs = [
        "coco:/srv/secret/photos:val2017",
        "folder:/other/photos",
        "folder:/srv/secret/photos",
        "folder:/other/photos",
    ]
    names = [images.add(spec, Pixels((8, 8)), none) for spec in specs]
    assert names == ["coco-photos-val2017", "folder-photos", "folder-photos-2", "folder-photos"]
    with pytest.raises(UserError, match="'7' is none of them"):
        images.get("folder-photos/7", Pixels((8, 8)))


@pytest.mark.parametrize("name", ["folder:/etc/1", "../../etc/passwd", "/etc/passwd", "nowhere/0", "world/²"])
def test_visitors_reach_no_other_pictures(name: str) -> None:
    with pytest.raises(UserError, match="take one of the examples"):
        ImageLibrary(Uploads()).get(name, Pixels((8, 8)))

"""Every kind of picture file becomes RGB, or an error of one line."""

from __future__ import annotations

import logging
import struct
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps

from backsight.core import Pixels, UserError
from backsight.data import UnreadableImage, open_data, read_image
from backsight.data.decode import jpeg_decoder, missing_decoders
from backsight.data.folder import find_images
from pictures import drawn, encoded, real_data, save_pictures

PHOTO = drawn(48, 64)


def by_pillow(content: bytes) -> torch.Tensor:
    image = ImageOps.exif_transpose(Image.open(BytesIO(content))).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.fixture
def choosing_anew() -> Iterator[None]:
    """The decoder of JPEG files is chosen within the test, and for others again."""
    jpeg_decoder.cache_clear()
    yield
    jpeg_decoder.cache_clear()


def install_torchcodec(monkeypatch: pytest.MonkeyPatch, **decoders: object) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(**decoders))


def sixteen_bit_png(height: int, width: int, rows: bytes) -> bytes:
    """A PNG of three channels of 16 bits, which Pillow cannot write; ``rows`` are big-endian, each after a zero."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_lossless_files_give_back_the_picture(kind: str) -> None:
    image = read_image(encoded(PHOTO, kind))
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(np.array(PHOTO)).permute(2, 0, 1))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg_is_the_same_as_pillows(options: dict) -> None:
    content = encoded(PHOTO, "JPEG", **options)
    assert torch.equal(read_image(content), by_pillow(content))


@pytest.mark.usefixtures("choosing_anew")
def test_torchcodec_is_taken_where_it_takes_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(content: bytes) -> torch.Tensor:
        if len(content) == len(refused):
            raise RuntimeError("what is this?")
        return torch.full((3, 2, 2), 7, dtype=torch.uint8)

    install_torchcodec(monkeypatch, decode_jpeg=decode)
    taken, refused = encoded(PHOTO, "JPEG"), encoded(PHOTO, "JPEG", quality=30)
    assert (read_image(taken) == 7).all()
    assert torch.equal(read_image(taken, upright=False), by_pillow(taken))  # torchcodec always turns
    assert torch.equal(read_image(refused), by_pillow(refused))
    assert read_image(encoded(PHOTO, "PNG")).shape == (3, 48, 64)


@pytest.mark.parametrize("decoders", [{}, {"decode_jpeg": None}])
@pytest.mark.usefixtures("choosing_anew")
def test_a_torchcodec_that_does_not_work_is_left_alone(monkeypatch: pytest.MonkeyPatch, decoders: dict) -> None:
    install_torchcodec(monkeypatch, **decoders)
    monkeypatch.delattr(torchvision.io, "decode_jpeg", raising=False)  # which is not needed either
    content = encoded(PHOTO, "JPEG")
    assert torch.equal(read_image(content), by_pillow(content))
    assert jpeg_decoder() is None


@pytest.mark.usefixtures("choosing_anew")
def test_the_decoder_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    save_pictures(tmp_path, [f"{split}/a/{n}.jpg" for split in ("train", "test") for n in range(3)])
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert open_data(f"folder:{tmp_path}", Pixels((16, 16))).train[0] is not None
    assert [each.message for each in caplog.records if "JPEG" in each.message] == ["JPEG files are decoded by Pillow"]


@pytest.mark.parametrize("mode", ["L", "CMYK", "1"])
def test_other_colours_become_rgb(mode: str) -> None:
    content = encoded(PHOTO.convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    image = read_image(content)
    assert image.shape == (3, 48, 64)
    assert torch.equal(image, by_pillow(content))


def test_cmyk_is_not_inverted() -> None:
    near_white = Image.new("RGB", (16, 16), (250, 240, 245)).convert("CMYK")
    assert read_image(encoded(near_white, "JPEG")).float().mean() > 230
    assert read_image(encoded(near_white, "TIFF")).float().mean() > 230


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    for kind in ("JPEG", "PNG"):
        content = encoded(PHOTO, kind, exif=exif)
        assert torch.equal(read_image(content), by_pillow(content))
        assert read_image(content).shape[1:] == ((48, 64) if orientation < 5 else (64, 48))
        assert read_image(content, upright=False).shape[1:] == (48, 64)


def test_metadata_of_the_wrong_kind_hinder_no_photo() -> None:
    width_in_words = struct.pack(">HHII", 256, 2, 1, 0)
    orientation = struct.pack(">HHIHH", 274, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + width_in_words + orientation + bytes(4)
    image = read_image(encoded(PHOTO, "JPEG", exif=exif))
    assert torch.equal(image, read_image(encoded(PHOTO, "JPEG")).rot90(-1, (1, 2)))


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    image.putpixel((2, 0), (200, 0, 0, 51))
    expected = [[200, 255, 244], [0, 255, 204], [0, 255, 204]]
    assert read_image(encoded(image, "PNG"))[:, 0].tolist() == expected
    assert read_image(encoded(image, "WEBP", lossless=True, exact=True))[:, 0].tolist() == expected


def test_transparent_palette_and_grey() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert read_image(encoded(palette, "PNG"))[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]
    assert read_image(encoded(palette, "PNG", transparency=0))[:, 0].T.tolist() == [[255] * 3, [40, 50, 60]]
    grey = Image.new("LA", (1, 1), (100, 0))
    assert read_image(encoded(grey, "PNG")).flatten().tolist() == [255] * 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    image = read_image(encoded(Image.fromarray(values), kind))
    assert torch.equal(image[1].flatten(), torch.arange(256, dtype=torch.uint8))


def test_sixteen_bit_colour() -> None:
    values = np.stack([np.arange(256).reshape(16, 16) * 257] * 3, axis=-1)
    values[..., 2] = 65535
    image = read_image(sixteen_bit_png(16, 16, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)))
    assert torch.equal(image[0].flatten(), torch.arange(256, dtype=torch.uint8))
    assert (image[2] == 255).all()


def test_floating_point_pictures() -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    assert torch.equal(read_image(encoded(Image.fromarray(ramp), "TIFF"))[0].flatten(), torch.arange(256).byte())
    for beyond in (ramp * 40, ramp - 1, ramp * np.nan):
        with pytest.raises(UnreadableImage, match="lie outside 0 to 1"):
            read_image(encoded(Image.fromarray(beyond), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert read_image(content)[:, 4, 4].tolist() == pytest.approx([255, 0, 0], abs=2)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "the file is empty"),
        (b"only text, not a picture\n", "not a picture"),
        (encoded(PHOTO, "JPEG")[:400], "truncated"),
        (encoded(PHOTO, "JPEG")[:12], ""),
        (encoded(PHOTO, "PNG")[:-200], "truncated"),
        (encoded(PHOTO, "PNG")[:40], ""),
        (encoded(PHOTO, "GIF")[:90], ""),
    ],
)
def test_broken_files_are_named_in_one_line(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"cannot read {path}: ")
    assert cause in message.lower()
    assert "\n" not in message
    assert len(message) < len(str(path)) + 120


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"nothing\.jpg: no such file"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(UnreadableImage, match="is a directory"):
        read_image(tmp_path)


def test_decompression_bombs_are_refused() -> None:
    with pytest.raises(UnreadableImage, match=r"cannot read bomb\.png: image size .* decompression bomb"):
        read_image(sixteen_bit_png(20_000, 20_000, b""), name="bomb.png")


@pytest.mark.parametrize("size", [(1, 101), (250, 2)])
def test_strips_are_refused_by_their_header(size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableImage, match="more than 100 times as long as wide"):
        read_image(encoded(Image.new("RGB", size), "PNG"))
    assert read_image(encoded(Image.new("RGB", (100, 1)), "PNG")).shape == (3, 1, 100)


def heic(brand: bytes = b"heic") -> bytes:
    """The beginning of a picture of a phone."""
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(200)


def test_pictures_that_need_an_extra_say_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    missing = {".heic": "pip install 'backsight[heif]' to read them"}
    for module in ("decode", "folder"):
        monkeypatch.setattr(f"backsight.data.{module}.missing_decoders", lambda: missing)
    with pytest.raises(UnreadableImage, match=r"it is a \.heic picture: pip install 'backsight\[heif\]'"):
        read_image(heic())
    with pytest.raises(UnreadableImage, match="not a picture in any known format"):
        read_image(heic(b"isom"))  # a film
    for number in range(20):
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(heic())
    with pytest.raises(UserError, match="has only pictures that cannot be read here: pip install"):
        open_data(f"folder:{tmp_path}", Pixels((16, 16)))
    save_pictures(tmp_path, [f"{number}.png" for number in range(3)])
    (tmp_path / "raw.DNG").touch()
    assert len(open_data(f"folder:{tmp_path}", Pixels((16, 16))).train) == 1
    assert f"20 .heic files in {tmp_path} are left out: pip install 'backsight[heif]' to read them" in caplog.text
    assert f"1 .dng files in {tmp_path} are left out: convert them" in caplog.text


def test_heic_and_avif_where_they_can_be_read(tmp_path: Path) -> None:
    for suffix in {".heic", ".avif"} - missing_decoders().keys():
        PHOTO.save(tmp_path / f"a{suffix}", quality=95)
        assert (read_image(tmp_path / f"a{suffix}").float() - by_pillow(encoded(PHOTO, "PNG"))).abs().mean() < 20
        assert find_images(tmp_path) == [f"a{suffix}"]
        (tmp_path / f"a{suffix}").unlink()


def test_large_pictures_do_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 64 - 1)
    assert read_image(encoded(PHOTO, "JPEG")).shape == (3, 48, 64)


def test_real_photos_are_the_same_as_pillows() -> None:
    photos = sorted(real_data("coco-tiny").glob("val2017/*.jpg"))[:4]
    photos += sorted(real_data("imagenet-sample").glob("*.JPEG"))[:8]
    for photo in photos:
        assert torch.equal(read_image(photo), by_pillow(photo.read_bytes()))

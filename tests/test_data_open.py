"""What a new user types, and what is answered."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from backsight.core import Pixels, UserError
from backsight.data import ImageData, open_data
from pictures import drawn, encoded, save_pictures

PIXELS = Pixels((16, 24))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("floder:photos", "did you mean 'folder:photos'?"),
        ("COCO:/data", "did you mean 'coco:/data'?"),
        ("huggingface", "data is one of coco:DIR"),
        ("pics/a.parquet", "say 'parquet:pics/a.parquet'"),
        ("", "data is one of coco:DIR"),
        ("folder:", "does not say where the data is"),
        ("coco", "does not say where the data is"),
        ("world:nowhere", "'nowhere' in 'world:nowhere' is no world"),
    ],
)
def test_specifications_that_are_none(spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        open_data(spec, PIXELS)
    assert message in str(caught.value)


def test_a_bare_folder_gets_its_word(tmp_path: Path) -> None:
    for inside, word in {"a.png": "folder", "b.parquet": "parquet", "annotations/c.json": "coco"}.items():
        (tmp_path / inside).parent.mkdir(exist_ok=True)
        (tmp_path / inside).touch()
        with pytest.raises(UserError, match=f"say '{word}:{tmp_path}'"):
            open_data(str(tmp_path), PIXELS)


def test_every_source_is_image_data(tmp_path: Path) -> None:
    save_pictures(tmp_path, [f"{n}.png" for n in range(3)])
    for spec in (f"folder:{tmp_path}", "world"):
        splits = open_data(spec, PIXELS)
        for part in (splits.train, splits.validation, splits.test):
            assert isinstance(part, ImageData)
            assert len(part.fingerprint()) == 64
            sample = part[0]
            assert sample is not None
            assert sample.image.shape == (3, 16, 24)


# ---- the names in shards of webdataset


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))


def test_names_with_dots_in_them_are_told(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {f"img.{number:05d}.png": b"" for number in range(20)})
    with pytest.raises(UserError, match=r"have the same key, as img\.00000\.png, .*rename them"):
        open_data(f"wds:{tmp_path}/a.tar", PIXELS)


@pytest.mark.parametrize("label", [b'{"label": 7}', b'{"cls": "7"}', b"7"])
def test_labels_in_json(tmp_path: Path, label: bytes) -> None:
    kind = "cls" if label == b"7" else "json"
    content = encoded(drawn(8, 8), "PNG")
    for part in ("a", "b"):
        names = [f"{part}{number}" for number in range(40)]
        sample = {"png": content, kind: label}
        write_shard(tmp_path / f"{part}.tar", {f"{name}.{end}": sample[end] for name in names for end in sample})
    splits = open_data(f"wds:{tmp_path}/{{a,b}}.tar", PIXELS)
    assert {sample.target.label for sample in map(splits.test.__getitem__, range(len(splits.test))) if sample} == {7}

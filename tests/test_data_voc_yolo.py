"""Pascal VOC's and YOLO's formats, as their own tools and others write them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from backsight.core import Pixels, UserError
from pictures import annotated, opened, real_data, save_pictures

PIXELS = Pixels((24, 32))
SIZE = (48, 64)
CORNERS = "<bndbox><ymin>9</ymin><xmin>5</xmin><ymax>18</ymax><xmax>24</xmax></bndbox>"
OBJECT = f"<object><name>{{}}</name><difficult>{{}}</difficult>{CORNERS}</object>"
BOX = torch.tensor([[2, 4, 12, 9.0]])
"""At half the size, where pixels are counted from 0 and the last is not included."""


def write_voc(folder: Path, stems: Iterable[str], objects: str = OBJECT.format("cat", 0)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        size = "<size><width>64</width><height>48</height></size>"
        (folder / f"{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


def numbers(count: int, suffix: str = "") -> list[str]:
    return [f"{number}{suffix}" for number in range(count)]


@pytest.mark.parametrize("layout", ["VOC's own", "below VOCdevkit", "beside the photos"])
def test_layouts_of_voc(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012" if layout == "below VOCdevkit" else tmp_path
    beside = layout == "beside the photos"
    save_pictures(root if beside else root / "JPEGImages", numbers(4, ".jpg"), SIZE)
    write_voc(root if beside else root / "Annotations", numbers(4))
    found = annotated(f"voc:{tmp_path}", PIXELS)
    assert len(found) == 4
    for sample in found.values():
        assert torch.equal(sample.target.boxes, BOX)
        assert (sample.target.labels.tolist(), sample.target.masks) == ([0], None)


def test_the_lists_of_voc_are_the_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_pictures(tmp_path / "JPEGImages", numbers(12, ".png"), SIZE)
    write_voc(tmp_path / "Annotations", numbers(10), OBJECT.format("dog", 1) + OBJECT.format("cat", 0))
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, stems in {"train": numbers(6), "val": ["6", "7"], "test": ["8", "9", "10", "gone"]}.items():
        (lists / f"{name}.txt").write_text("\n".join(stems))
    (lists / "trainval.txt").write_text("1 1\n2 -1")
    splits = opened(f"voc:{tmp_path}", PIXELS, masks=True)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6, 2, 3)
    assert splits.train.classes == {0: "cat", 1: "dog"}
    target = splits.train[0].target
    assert (target.labels.tolist(), target.crowd.tolist()) == ([1, 0], [True, False])
    assert "1 photos without an .xml file: they show nothing (the first: JPEGImages/10.png)" in caplog.text
    assert "1 annotated photos left out: they are not there (the first: gone)" in caplog.text


def test_folders_are_the_splits_where_there_are_no_lists(tmp_path: Path) -> None:
    for split, count in {"train": 20, "valid": 3, "test": 4}.items():
        save_pictures(tmp_path / split, numbers(count, ".jpg"), SIZE)
        write_voc(tmp_path / split, numbers(count))
    splits = opened(f"voc:{tmp_path}", PIXELS)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (20, 3, 4)
    assert len(opened(f"voc:{tmp_path}:test", PIXELS).train) == 2


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ("<object><name>cat</name></object>", "without 'bndbox'"),
        (OBJECT.format("", 0), "without 'name'"),
        (OBJECT.format("cat", 0).replace("24", "3"), "'bndbox' cannot be read"),
        ("<object>", "files that are not whole XML"),
    ],
)
def test_objects_of_voc_that_cannot_be_used(
    tmp_path: Path, objects: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_pictures(tmp_path, numbers(4, ".jpg"), SIZE)
    write_voc(tmp_path, numbers(3))
    write_voc(tmp_path, ["3"], objects)
    assert sum(len(sample.target.boxes) for sample in annotated(f"voc:{tmp_path}", PIXELS).values()) == 3
    assert message in caplog.text


def test_real_blood_cells() -> None:
    splits = opened(f"voc:{real_data('bccd')}", PIXELS)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (195, 10, 87)
    assert set(splits.train.classes.values()) == {"Platelets", "RBC", "WBC"}
    assert all(len(splits.test[index].target.boxes) for index in range(10))


# ---- YOLO


def write_yolo(folder: Path, count: int, line: str = "1 0.21875 0.270833 0.3125 0.208333") -> None:
    """Photos in ``folder``, which has ``images`` in it, and their labels in ``labels`` in its place."""
    save_pictures(folder, numbers(count, ".jpg"), SIZE)
    labels = Path(str(folder).replace("images", "labels"))
    labels.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (labels / f"{number}.txt").write_text(line)


YAML = "train: {}\nval: {}\nnames: [cat, dog]\nnc: 2\n"
LAYOUTS = {
    "ultralytics": (["images/train", "images/val"], YAML.format("images/train", "images/val")),
    "roboflow": (["train/images", "valid/images"], YAML.format("../train/images", "../valid/images")),
    "a path that is not here": (
        ["images/train", "images/val"],
        "path: ../datasets/mine\ntrain: images/train\nval: [images/val]\nnames: {0: cat, 1: dog}",
    ),
    "no data.yaml": (["images/train", "images/val"], None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_yolo(tmp_path: Path, layout: str) -> None:
    folders, text = LAYOUTS[layout]
    for folder, count in zip(folders, (20, 4), strict=True):
        write_yolo(tmp_path / folder, count)
    (tmp_path / ("data.yaml" if text else "classes.txt")).write_text(text or "cat\ndog\n")
    splits = opened(f"yolo:{tmp_path}", PIXELS)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (19, 1, 4)
    assert splits.train.classes == {0: "cat", 1: "dog"}
    target = splits.train[0].target
    assert target.labels.tolist() == [1]
    torch.testing.assert_close(target.boxes, BOX, atol=1e-3, rtol=0)
    if text:
        assert len(opened(f"yolo:{tmp_path}/data.yaml:val", PIXELS).train) == 2


def test_polygons_of_yolo_are_outlines(tmp_path: Path) -> None:
    write_yolo(tmp_path / "images", 3, "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    (target, *_) = [sample.target for sample in annotated(f"yolo:{tmp_path}", PIXELS, masks=True).values()]
    assert target.boxes.tolist() == [[8, 6, 24, 18]]
    assert target.masks[0, 6:18, 8:24].all()
    assert target.masks.sum() == 12 * 16


def test_a_list_of_photos_and_the_same_photos_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_yolo(tmp_path / "images", 6)
    (tmp_path / "photos.txt").write_text("".join(f"./images/{name}\n" for name in numbers(6, ".jpg")))
    (tmp_path / "data.yaml").write_text("train: photos.txt\nval: images\n")
    splits = opened(f"yolo:{tmp_path}", PIXELS)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (4, 1, 1)
    assert "train has no photos of its own" in caplog.text


BAD_LINES = ["0 5 6 20 15", "0 .5 .5 0 .5", "0 .5 .5 .5", "cat .5 .5 .1 .1", "-1 .5 .5 .1 .1", "0 nan .5 .1 .1"]


@pytest.mark.parametrize("line", BAD_LINES)
def test_lines_of_yolo_that_cannot_be_used(tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture) -> None:
    write_yolo(tmp_path / "images", 4)
    (tmp_path / "labels" / "1.txt").write_text(f"{line}\n0 .5 .5 .1 .1 0.93\n")
    (tmp_path / "labels" / "2.txt").unlink()
    found = annotated(f"yolo:{tmp_path}", PIXELS)
    assert sum(len(sample.target.boxes) for sample in found.values()) == 3
    assert "1 lines left out: they have to be CLASS X Y WIDTH HEIGHT or CLASS X Y X Y" in caplog.text
    assert "1 photos without a file of labels: they show nothing (the first: images/2.jpg)" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: nowhere\n", "there is no '.*nowhere'"),
        ("train: {a: b}\n", "'train' of .* is {'a': 'b'}: it has to be"),
        ("[", "is not YAML"),
        ("&a [*a]", "more than 100 levels"),
    ],
)
def test_a_data_file_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    write_yolo(tmp_path / "images", 3)
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        opened(f"yolo:{tmp_path}", PIXELS)

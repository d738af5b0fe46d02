"""COCO's format: real annotations against COCO's own tools, made ones in all layouts, with what other tools write."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backsight.core import Pixels, UserError
from backsight.data.outlines import draw_mask, read_outline
from pictures import annotated, drawn, opened, real_data, save_pictures, write_coco

coco_mask: Any = pytest.importorskip("pycocotools.mask")
coco: Any = pytest.importorskip("pycocotools.coco")

PIXELS = Pixels((24, 32))
Content = dict[str, Any]

# pycocotools 2.0 speaks to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_boxes_labels_crowds_and_masks(tmp_path: Path) -> None:
    data = annotated(f"coco:{write_coco(tmp_path, 'val2017', 3)}", PIXELS, masks=True)
    sample = data["val2017/2.png"]
    assert sample.target.labels.sort().values.tolist() == [3, 3, 7]
    assert sample.target.crowd.tolist() == [True, False, False]  # the annotations are in reverse
    torch.testing.assert_close(sample.target.boxes[2], torch.tensor([0.0, 1, 5, 11]))
    assert sample.target.masks[2].sum() == 5 * 10
    assert annotated(f"coco:{tmp_path}", PIXELS)["val2017/2.png"].target.masks is None


def test_the_splits_of_coco(tmp_path: Path) -> None:
    write_coco(tmp_path, "train2014", 5)
    write_coco(tmp_path, "train2017", 40)
    write_coco(tmp_path, "val2017", 6)
    write_coco(tmp_path, "odd", 4)
    splits = opened(f"coco:{tmp_path}", PIXELS)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (38, 2, 6)
    ids = [set(part.ids) for part in (splits.train, splits.validation, splits.test)]
    assert len(set.union(*ids)) == 46
    assert splits.train.classes == {3: "cat", 7: "dog"}
    for split, sizes in {"val2017": (4, 1, 1), "odd": (2, 1, 1)}.items():
        one = opened(f"coco:{tmp_path}:{split}", PIXELS)
        assert (len(one.train), len(one.validation), len(one.test)) == sizes


def rewrite(path: Path, change: Callable[[Content], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def each(kind: str, change: Callable[[Content], Content]) -> Callable[[Content], None]:
    """Update every entry of a kind by what ``change`` makes of it."""

    def update(content: Content) -> None:
        for entry in content[kind]:
            entry.update(change(entry))

    return update


def rename_photos(root: Path, change: Callable[[str], str]) -> None:
    rewrite(next(root.rglob("*.json")), each("images", lambda image: {"file_name": change(image["file_name"])}))


JSON = "annotations/instances_train.json"
LAYOUTS: dict[str, tuple[str, dict[str, str], str]] = {
    "roboflow": ("{root}", {JSON: "train/_annotations.coco.json"}, "{}"),
    "cvat": ("{root}", {JSON: "annotations/instances_default.json", "train": "images/default"}, "{}"),
    "label studio": ("{root}", {JSON: "result.json", "train": "images"}, "images\\{}"),
    "images/SPLIT": ("{root}", {"train": "images/train"}, "{}"),
    "flat images": ("{root}", {"train": "images"}, "{}"),
    "one file": ("{root}", {JSON: "labels.json", "train": "photos"}, "photos/{}"),
    "paths of another machine": ("{root}", {}, "D:\\data\\train\\{}"),
    "named outright": ("{root}/photos:{root}/a:b.json", {JSON: "a:b.json", "train": "photos"}, "{}"),
    "one split named": ("{root}:train", {}, "{}"),
}
"""The specification, which files are moved where, and how photos are called in the annotations."""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_found_by_looking(tmp_path: Path, layout: str) -> None:
    spec, moves, name = LAYOUTS[layout]
    rename_photos(write_coco(tmp_path, "train", 4), name.format)
    for old, new in moves.items():
        (tmp_path / new).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / old).rename(tmp_path / new)
    found = annotated(f"coco:{spec}".format(root=tmp_path), PIXELS)
    assert sorted(len(sample.target.boxes) for sample in found.values()) == [1, 2, 3, 4]


def test_absolute_paths_in_annotations(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", "train", 4)
    rename_photos(root, lambda name: str(root / "train" / name))
    before = annotated(f"coco:{root}", PIXELS)
    assert set(before) == {f"train/{number}.png" for number in range(4)}
    shutil.move(root / "train", tmp_path / "elsewhere")
    rename_photos(root, lambda name: str(tmp_path / "elsewhere" / Path(name).name))
    assert len(annotated(f"coco:{root}", PIXELS)) == 4


def as_text(kind: str, *names: str) -> Callable[[Content], None]:
    return each(kind, lambda entry: {name: str(entry[name]) for name in names})


def to_runs(entry: Content) -> Content:
    inside = np.zeros((48, 64), np.uint8, order="F")
    inside[2:22, entry["bbox"][0] : entry["bbox"][0] + 10] = 1
    return {"segmentation": {"size": [48, 64], "counts": coco_mask.encode(inside)["counts"].decode()}}


def points_of(entry: Content) -> list[list[float]]:
    return np.reshape(entry["segmentation"][0], (-1, 2)).tolist()


SAME: dict[str, Callable[[Content], None]] = {
    "image ids as text": as_text("annotations", "image_id"),
    "category ids as text": as_text("annotations", "category_id"),
    "ids of images as text": as_text("images", "id"),
    "names for ids": each("annotations", lambda entry: {"category_id": {3: "cat", 7: "dog"}[entry["category_id"]]}),
    "crowds as text": as_text("annotations", "iscrowd"),
    "crowds as truth": each("annotations", lambda entry: {"iscrowd": entry["iscrowd"] == 1}),
    "sizes as text": as_text("images", "width", "height"),
    "sizes of -1": each("images", lambda image: {"width": -1, "height": -1}),
    "no sizes": each("images", lambda image: {"width": None}),
    "boxes as text": each("annotations", lambda entry: {"bbox": list(map(str, entry["bbox"]))}),
    "no boxes": each("annotations", lambda entry: {"bbox": None}),
    "flat polygons": each("annotations", lambda entry: {"segmentation": entry["segmentation"][0]}),
    "polygons of points": each("annotations", lambda entry: {"segmentation": [points_of(entry)]}),
    "a polygon of points": each("annotations", lambda entry: {"segmentation": points_of(entry)}),
    "run lengths": each("annotations", to_runs),
    "run lengths alone": each("annotations", lambda entry: {**to_runs(entry), "bbox": None}),
}
"""What other tools write, and means the same."""


@pytest.mark.parametrize("what", SAME)
def test_what_other_tools_write_is_understood(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    plain = annotated(f"coco:{write_coco(tmp_path / 'plain', 'val', 4)}", PIXELS, masks=True)
    rewrite(write_coco(tmp_path / "other", "val", 4) / "annotations" / "instances_val.json", SAME[what])
    found = annotated(f"coco:{tmp_path / 'other'}", PIXELS, masks=True)
    for name, sample in plain.items():
        ours, theirs = found[name].target, sample.target
        for field in ("boxes", "labels", "crowd", "masks"):
            assert torch.equal(getattr(ours, field), getattr(theirs, field)), field
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def of_all(**fields: Any) -> Callable[[Content], None]:
    return each("annotations", lambda entry: fields)


COUNTED: dict[str, tuple[Callable[[Content], Any], str, int]] = {
    "of no image": (of_all(image_id=99), "10 of the annotations left out: no image is listed", 0),
    "no category": (of_all(category_id=None), "10 of the annotations left out: without 'category_id'", 0),
    "no ids": (of_all(image_id=[1]), "10 of the annotations left out: 'image_id' cannot be read", 0),
    "another category": (of_all(category_id=5), "10 annotations of a category that is not listed", 10),
    "all crowds": (of_all(iscrowd=1), "10 objects, which is all, are crowds", 10),
    "odd crowds": (of_all(iscrowd="maybe"), "10 of the annotations with a 'iscrowd' that cannot be", 10),
    "no area": (of_all(bbox=[1, 1, 0, 5], segmentation=[]), "10 of the annotations left out: neither", 0),
    "infinite": (of_all(bbox=[1, 1, "inf", 5], segmentation=[]), "10 of the annotations left out", 0),
    "two points": (of_all(segmentation=[[1, 2, 3, 4]]), "10 of the annotations with a 'segmentation'", 10),
    "not a mapping": (lambda content: content["annotations"].append(7), "1 of the annotations left out: no names", 10),
    "not a list": (lambda content: content.update(annotations=7), "1 list of annotations left out", 0),
    "an image without name": (lambda content: content["images"].append({"id": 7}), "1 of the images left out", 10),
}


@pytest.mark.parametrize("what", COUNTED)
def test_what_cannot_be_used_is_counted_in_one_line(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, message, left = COUNTED[what]
    path = write_coco(tmp_path, "val", 4) / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    if not left:
        with pytest.raises(UserError, match=f"{path}: {message}.*no object is left"):
            opened(f"coco:{tmp_path}", PIXELS, masks=True)
        return
    found = annotated(f"coco:{tmp_path}", PIXELS, masks=True)
    assert sum(len(sample.target.boxes) for sample in found.values()) == left
    assert [record.message for record in caplog.records if message in record.message and str(path) in record.message]


def test_names_of_categories(tmp_path: Path) -> None:
    categories = [{"id": 3}, {"id": 7, "name": 5}, {"id": "left", "name": "l"}, {"id": -1, "name": "minus"}]
    root = write_coco(tmp_path, "val", 3, categories=categories)
    assert opened(f"coco:{root}", PIXELS).train.classes == {3: "3", 7: "5", 0: "l", 1: "minus"}


def test_objects_without_outlines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_coco(tmp_path, "val", 4) / "annotations" / "instances_val.json"
    rewrite(path, lambda content: content["annotations"][0].update(segmentation=None))
    mixed = annotated(f"coco:{tmp_path}", PIXELS, masks=True)
    assert "1 objects without an outline: their boxes stand for it" in caplog.text
    assert mixed["val/3.png"].target.masks.flatten(1).sum(1).tolist() == [5 * 10] * 4
    rewrite(path, of_all(segmentation=[]))
    assert all(sample.target.masks is None for sample in annotated(f"coco:{tmp_path}", PIXELS, masks=True).values())


def test_the_fingerprint_knows_the_annotations(tmp_path: Path) -> None:
    first = opened(f"coco:{write_coco(tmp_path, 'val', 4)}", PIXELS).train.fingerprint()
    assert first == opened(f"coco:{tmp_path}", PIXELS).train.fingerprint()
    write_coco(tmp_path, "val", 4, categories=[])
    assert first != opened(f"coco:{tmp_path}", PIXELS).train.fingerprint()


def test_photos_are_taken_the_way_round_that_they_were_annotated(tmp_path: Path) -> None:
    root = write_coco(tmp_path, "val", 3)
    turned = drawn(48, 64).getexif()
    turned[274] = 6
    square = Pixels((64, 64), fit="crop")
    drawn(48, 64).save(root / "val" / "0.png", exif=turned)
    as_stored = annotated(f"coco:{root}", square)["val/0.png"]
    drawn(48, 64).save(root / "val" / "0.png")
    assert torch.equal(as_stored.image, annotated(f"coco:{root}", square)["val/0.png"].image)


@pytest.mark.parametrize("what", ["the photo", "an outline"])
def test_annotations_of_another_photo_leave_it_out(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    path = write_coco(tmp_path, "val", 4) / "annotations" / "instances_val.json"
    if what == "the photo":
        drawn(30, 40).save(tmp_path / "val" / "0.png")
    else:
        runs = {"size": [5, 6], "counts": [10, 20]}
        rewrite(path, lambda content: content["annotations"][-1].update(segmentation=runs))
    assert set(annotated(f"coco:{tmp_path}", PIXELS, masks=True)) == {f"val/{number}.png" for number in (1, 2, 3)}
    assert "it is 40 x 30, its annotations are for 64 x 48" in caplog.text or "is of another photo" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [{"id": 1', "is not whole JSON"),
        ("[" * 100_000, "is not whole JSON"),
        ("[1, 2]", "lists no images"),
        ('{"images": {}}', "lists no images"),
        ('{"images": [{"id": 1}]}', "lists no images"),
        ('{"images": [{"id": 1, "file_name": "gone.jpg"}]}', r"none of the 1 photos in .* is in '.*/val'"),
        ('{"images": [{"id": 1, "file_name": "0.png"}, {"id": "1", "file_name": "1.png"}]}', "of the same 'id'"),
        ('{"images": [{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "0.png"}]}', "of the same 'file_name'"),
    ],
)
def test_annotations_that_are_not_cocos(tmp_path: Path, content: str, message: str) -> None:
    (write_coco(tmp_path, "val", 3) / "annotations" / "instances_val.json").write_text(content)
    with pytest.raises(UserError, match=message):
        opened(f"coco:{tmp_path}", PIXELS)


def test_folders_that_are_not_cocos(tmp_path: Path) -> None:
    for spec, message in {
        "coco:/nowhere": "there is no '/nowhere'",
        f"coco:{tmp_path}": "pictures alone are 'folder:",
    }.items():
        with pytest.raises(UserError, match=message):
            opened(spec, PIXELS)
    path = write_coco(tmp_path, "val2017", 3) / "annotations" / "instances_val2017.json"
    with pytest.raises(UserError, match="no 'test', the splits there are: val2017"):
        opened(f"coco:{tmp_path}:test", PIXELS)
    with pytest.raises(UserError, match=f"is a file: 'coco:' takes the folder above it, 'coco:{tmp_path}'"):
        opened(f"coco:{path}", PIXELS)


@pytest.mark.parametrize("seed", range(3))
def test_masks_from_polygons_and_run_lengths(seed: int) -> None:
    generator = np.random.default_rng(seed)
    polygons = [generator.uniform(0, [40, 30], (n, 2)).flatten().tolist() for n in (3, 5, 9)]
    theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 30, 40)))
    flat = theirs.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    counts = np.diff(np.array([0, *changes, len(flat)])).tolist()
    compressed = coco_mask.encode(np.asfortranarray(theirs))["counts"].decode()
    for outline in (polygons, {"size": [30, 40], "counts": compressed}, {"size": [30, 40], "counts": counts}):
        ours = draw_mask(read_outline(outline), (30, 40))  # type: ignore[arg-type]
        assert np.array_equal(ours.numpy(), theirs)  # type: ignore[union-attr]


NO_RUNS: list[Content] = [{"counts": each} for each in ([29], [-1, 31], "x", 7, [None])]
NO_POLYGONS: list[Any] = [7, [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [["a"] * 6], [[float("nan")] * 6]]


@pytest.mark.parametrize("outline", [*({**runs, "size": [5, 6]} for runs in NO_RUNS), {"counts": [30]}, *NO_POLYGONS])
def test_outlines_that_are_none(outline: Any) -> None:
    with pytest.raises((ValueError, TypeError, LookupError)):
        read_outline(outline)


def test_real_annotations_against_cocos_own_tools() -> None:
    root = real_data("coco-tiny")
    theirs = coco.COCO(root / "annotations" / "instances_val2017.json")
    by_name = {image["file_name"]: image for image in theirs.imgs.values()}
    data = opened(f"coco:{root}", PIXELS, masks=True).test
    assert len(data) == len(theirs.imgs) == 80
    for index, identity in enumerate(data.ids[:20]):
        image = by_name[Path(identity).name]
        annotations = theirs.imgToAnns[image["id"]]
        target = data.target(index, (image["height"], image["width"]))
        assert target.labels.tolist() == [annotation["category_id"] for annotation in annotations]
        assert target.crowd.tolist() == [bool(annotation["iscrowd"]) for annotation in annotations]
        for mask, annotation in zip(target.masks, annotations, strict=True):
            assert np.array_equal(mask.numpy(), theirs.annToMask(annotation))
        sizes = [annotation["bbox"][2:] for annotation in annotations]
        torch.testing.assert_close(target.boxes[:, 2:] - target.boxes[:, :2], torch.tensor(sizes), atol=1e-3, rtol=0)


def test_photos_in_two_parts_are_in_one_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_coco(tmp_path, "train", 30)
    write_coco(tmp_path, "val", 6)
    for split in ("train", "val"):
        save_pictures(tmp_path / "images", [path.name for path in (tmp_path / split).iterdir()], (48, 64))
        shutil.rmtree(tmp_path / split)
    splits = opened(f"coco:{tmp_path}", PIXELS)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (23, 1, 6)
    assert "6 photos are in another part too, and left out of train" in caplog.text

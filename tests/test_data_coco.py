"""COCO's layout: real annotations against COCO's own tools, made ones against what was made."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backsight.core import Pixels, UserError
from backsight.data.coco import Coco, draw_mask
from backsight.data.source import Reading
from pictures import drawn, opened, real_data, save_pictures

coco_mask: Any = pytest.importorskip("pycocotools.mask")
coco: Any = pytest.importorskip("pycocotools.coco")

PIXELS = Pixels((24, 32))

# pycocotools 2.0 speaks to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def read(root: Path, split: str, pixels: Pixels = PIXELS, masks: bool = False) -> Any:
    return Coco("coco", root, split, Reading(pixels, masks=masks))


def write_coco(folder: Path, split: str, num_images: int, **changes: Any) -> Path:
    """``num_images`` photos of 48 x 64 pixels; photo i has i + 1 objects."""
    images = [{"id": 100 + i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in range(num_images)]
    save_pictures(folder / split, [image["file_name"] for image in images], (48, 64))
    objects = [(image["id"], k) for i, image in enumerate(images) for k in range(i + 1)]
    annotations = [
        {"id": n, "image_id": image, "category_id": 3 + 4 * (k % 2), "bbox": [k, 2, 10, 20], "iscrowd": int(k == 2)}
        | {"segmentation": [[k, 2, k + 10, 2, k + 10, 22, k, 22]]}
        for n, (image, k) in enumerate(objects)
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    content = {"images": images, "annotations": annotations[::-1], "categories": categories} | changes
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return folder


def test_boxes_labels_and_crowds(tmp_path: Path) -> None:
    data = read(write_coco(tmp_path, "val2017", 3), "val2017", masks=True)
    sample = data[2]
    assert sample is not None
    assert sample.id == "val2017/2.png"
    assert sample.target.labels.sort().values.tolist() == [3, 3, 7]
    assert sample.target.crowd.tolist() == [True, False, False]  # the annotations are in reverse
    torch.testing.assert_close(sample.target.boxes[2], torch.tensor([0.0, 1, 5, 11]))
    assert sample.target.masks is not None
    assert sample.target.masks[2].sum() == 5 * 10
    assert data.classes == {3: "cat", 7: "dog"}
    assert read(tmp_path, "val2017")[2].target.masks is None
    assert data[-1].id == sample.id
    with pytest.raises(IndexError):
        data[3]


def test_photos_without_objects_and_without_annotations(tmp_path: Path) -> None:
    root = write_coco(tmp_path, "val", 3, annotations=[])
    sample = read(root, "val", masks=True)[0]
    assert sample is not None
    assert sample.target.boxes.shape == (0, 4)
    assert sample.target.masks is not None
    assert sample.target.masks.shape == (0, 24, 32)


def test_the_splits_of_coco(tmp_path: Path) -> None:
    write_coco(tmp_path, "train2017", 40)
    write_coco(tmp_path, "val2017", 6)
    splits = opened(f"coco:{tmp_path}", PIXELS)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (38, 2, 6)
    ids = [set(part.ids) for part in (splits.train, splits.validation, splits.test)]
    assert len(set.union(*ids)) == sum(map(len, ids)) == 46
    one = opened(f"coco:{tmp_path}:val2017", PIXELS)
    assert (len(one.train), len(one.validation), len(one.test)) == (4, 1, 1)


def test_other_names_of_splits(tmp_path: Path) -> None:
    write_coco(tmp_path, "train2014", 5)
    write_coco(tmp_path, "train2017", 7)
    write_coco(tmp_path, "odd", 4)
    assert len(opened(f"coco:{tmp_path}", PIXELS).train) == 5  # the newest, and 1 each for the other parts
    assert len(opened(f"coco:{tmp_path}:odd", PIXELS).train) == 2


def test_the_fingerprint_knows_the_annotations(tmp_path: Path) -> None:
    first = opened(f"coco:{write_coco(tmp_path, 'val', 4)}", PIXELS).train.fingerprint()
    assert first == opened(f"coco:{tmp_path}", PIXELS).train.fingerprint()
    write_coco(tmp_path, "val", 4, categories=[])
    assert first != opened(f"coco:{tmp_path}", PIXELS).train.fingerprint()


def test_photos_are_taken_the_way_round_that_they_were_annotated(tmp_path: Path) -> None:
    root = write_coco(tmp_path, "val", 1)
    turned = drawn(48, 64).getexif()
    turned[274] = 6
    drawn(48, 64).save(root / "val" / "0.png", exif=turned)
    square = Pixels((64, 64), fit="crop")
    as_stored = read(root, "val", square)[0]
    drawn(48, 64).save(root / "val" / "0.png")
    assert torch.equal(as_stored.image, read(root, "val", square)[0].image)


def test_photos_of_another_size_than_annotated_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_coco(tmp_path, "val", 2)
    drawn(30, 40).save(root / "val" / "1.png")
    with caplog.at_level(logging.WARNING):
        assert read(root, "val")[1] is None
    assert "it is 40 x 30, its annotations are for 64 x 48" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "lists no images"),
        ({"images": [{"id": 1}]}, "not COCO's layout: an entry is without 'file_name'"),
        (
            {"annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]},
            "not COCO's layout: an entry is without 'category_id'",
        ),
        ({"images": [{"id": 1, "file_name": "gone.jpg"}]}, r"none of the 1 photos in .* is in '.*/val'"),
        ({"images": [{"id": 1, "file_name": f"{n}.png"} for n in range(3)]}, "several images of the same 'id'"),
        ({"images": [{"id": n, "file_name": "0.png"} for n in range(3)]}, "several images of the same 'file_name'"),
    ],
)
def test_annotations_that_are_not_cocos(tmp_path: Path, changes: dict, message: str) -> None:
    write_coco(tmp_path, "val", 3, **changes)
    with pytest.raises(UserError, match=message):
        opened(f"coco:{tmp_path}", PIXELS)


def test_json_that_is_broken_or_something_else(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "val", 3) / "annotations" / "instances_val.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match="is not whole JSON"):
        opened(f"coco:{tmp_path}", PIXELS)
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match="lists no images"):
        opened(f"coco:{tmp_path}", PIXELS)


def test_folders_that_are_not_cocos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder '/nowhere'"):
        opened("coco:/nowhere", PIXELS)
    with pytest.raises(UserError, match=f"pictures alone are 'folder:{tmp_path}'"):
        opened(f"coco:{tmp_path}", PIXELS)
    write_coco(tmp_path, "val2017", 3)
    with pytest.raises(UserError, match=r"no annotations/instances_test\.json in .*: the splits there are: val2017"):
        opened(f"coco:{tmp_path}:test", PIXELS)


@pytest.mark.parametrize("seed", range(5))
def test_masks_from_polygons_and_run_lengths(seed: int) -> None:
    generator = np.random.default_rng(seed)
    polygons = [generator.uniform(0, [40, 30], (n, 2)).flatten().tolist() for n in (3, 5, 9)]
    theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 30, 40)))
    assert np.array_equal(draw_mask(polygons, (30, 40)).numpy(), theirs)
    compressed = coco_mask.encode(np.asfortranarray(theirs))
    text = {"size": [30, 40], "counts": compressed["counts"].decode()}
    assert np.array_equal(draw_mask(text, (30, 40)).numpy(), theirs)
    flat = theirs.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    counts = np.diff(np.array([0, *changes, len(flat)])).tolist()
    assert np.array_equal(draw_mask({"size": [30, 40], "counts": counts}, (30, 40)).numpy(), theirs)


def test_masks_of_nothing_and_of_another_photo() -> None:
    for outline in (None, [], [[1, 2, 3, 4]]):
        assert not draw_mask(outline, (5, 6)).any()
    with pytest.raises(UserError, match="for 6 x 5 pixels annotate a photo of 7 x 5"):
        draw_mask({"size": [5, 6], "counts": [30]}, (5, 7))


def test_real_annotations_against_cocos_own_tools() -> None:
    root = real_data("coco-tiny")
    theirs = coco.COCO(root / "annotations" / "instances_val2017.json")
    data = read(root, "val2017", masks=True)
    assert len(data) == len(theirs.imgs) == 80
    by_name = {image["file_name"]: image for image in theirs.imgs.values()}
    for index, identity in enumerate(data.ids[:20]):
        image = by_name[Path(identity).name]
        annotations = theirs.imgToAnns[image["id"]]
        target = data.target(index, (image["height"], image["width"]))
        assert target.labels.tolist() == [annotation["category_id"] for annotation in annotations]
        assert target.crowd.tolist() == [bool(annotation["iscrowd"]) for annotation in annotations]
        assert target.masks is not None
        for mask, annotation in zip(target.masks, annotations, strict=True):
            assert np.array_equal(mask.numpy(), theirs.annToMask(annotation))
        sizes = [annotation["bbox"][2:] for annotation in annotations]
        torch.testing.assert_close(target.boxes[:, 2:] - target.boxes[:, :2], torch.tensor(sizes), atol=1e-3, rtol=0)
    assert {int(label) for label in data.objects.labels} <= set(data.classes)

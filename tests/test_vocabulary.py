"""Data and models that count their classes differently: names decide, and the same images get the same figures."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from backsight.core import Classes, Detections, Pixels, Site, Spec, Stage
from backsight.data import Target, loader, open_data
from backsight.data.labels import Labelling, outside, translate
from backsight.data.world import World, open_world
from backsight.engine import StagedModel
from backsight.evaluation import task_scores
from backsight.models import load_model, vocabulary
from pictures import save_pictures

CONTIGUOUS = {0: ("person",), 1: ("motorbike",), 2: ("pottedplant",), 3: ("tv", "telly")}


def test_classes_of_the_same_name_get_the_same_label():
    found = translate({1: "person", 4: "motorcycle", 64: "Potted plant", 72: "TV"}, CONTIGUOUS)
    assert found == {1: 0, 4: 1, 64: 2, 72: 3}


def test_a_class_that_the_model_has_not_is_none_of_its_labels():
    classes = {1: "person", 2: "unicorn", 3: "telly"}
    found = translate(classes, CONTIGUOUS)
    assert found == {1: 0, 3: 3, 2: outside(CONTIGUOUS)}
    assert Labelling.of(classes, CONTIGUOUS).classes == {0: "person", 3: "telly", 4: "unicorn"}


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({0: "cat", 1: "dog"}, {0: ("cat",), 1: ("dog",)}),
        ({}, CONTIGUOUS),
        ({3: "cat"}, {}),
        ({3: "cat", 9: "dog"}, dict.fromkeys(range(91), ())),
    ],
    ids=["alike", "data without names", "no classes", "a model without names, of another number"],
)
def test_labels_stay_where_nothing_says_otherwise(classes: dict[int, str], words: dict[int, tuple[str, ...]]):
    assert translate(classes, words) == {}


def test_as_many_classes_without_a_name_in_common_are_taken_in_order():
    assert translate({3: "cat", 9: "dog"}, {0: (), 1: ()}) == {3: 0, 9: 1}


def test_a_name_of_two_classes_decides_nothing():
    assert translate({0: "crane", 1: "tench"}, {0: ("tench",), 1: ("crane", "bird"), 2: ("crane",)}) == {1: 0, 0: 3}


def test_the_target_of_an_unknown_class():
    target = Target(torch.zeros(2, 4), torch.tensor([5, 7]), label=7)
    known = Labelling({}, {5: 0, 7: 2}, known=2).of_model(target)
    assert (known.labels.tolist(), known.label) == ([0, 2], None)


def write_coco(world: World, folder: Path, count: int) -> None:
    """The first scenes as files of COCO, whose category ids are the labels plus one."""
    (folder / "val2017").mkdir()
    annotations = []
    for index in range(count):
        sample = world[index]
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(folder / "val2017" / f"{index:012d}.png")
        for (left, top, right, bottom), label in zip(
            sample.target.boxes.tolist(), sample.target.labels.tolist(), strict=True
        ):
            box = [left, top, right - left, bottom - top]
            annotations.append({"image_id": index, "category_id": label + 1, "bbox": box, "iscrowd": 0})
    height, width = world.size
    images = [{"id": i, "file_name": f"{i:012d}.png", "height": height, "width": width} for i in range(count)]
    categories = [{"id": label + 1, "name": name} for label, name in world.classes.items()]
    (folder / "annotations").mkdir()
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))


def test_the_same_scenes_as_coco_have_the_same_precision(tmp_path: Path):
    """COCO's ids are another count of the same classes: nothing may depend on that."""
    model = load_model("zoo/detr-prior")
    world: Any = open_world("world:prior").test
    write_coco(world, tmp_path, 24)
    coco = open_data(f"coco:{tmp_path}:val2017", model.pixels, vocabulary=vocabulary(model))
    assert coco.train.classes == world.classes
    parts = [each[index] for each in (coco.train, coco.validation, coco.test) for index in range(len(each))]
    theirs = {int(Path(sample.id).stem): sample.target.labels.tolist() for sample in parts if sample is not None}
    assert theirs == {index: world[index].target.labels.tolist() for index in theirs}
    assert len(theirs) == 24
    assert float(task_scores(model, loader(coco.train, 8))["AP"]) > 0.5


def test_folders_of_some_classes_find_them_among_the_models(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save_pictures(tmp_path, [f"{name}/{n}.png" for name in ("star", "cross", "unicorn") for n in range(20)])
    words = vocabulary(load_model("zoo/vit-prior"))
    with caplog.at_level(logging.WARNING):
        data = open_data(f"folder:{tmp_path}", Pixels((24, 24)), vocabulary=words)
    assert "the model has no class for 1 of the 3 there: unicorn" in caplog.text
    label = {names[0]: index for index, names in words.items()}
    for index in range(len(data.train)):
        sample = data.train[index]
        assert sample.target.label == label.get(sample.id.partition("/")[0])
    plain = open_data(f"folder:{tmp_path}", Pixels((24, 24)))
    assert plain.train.fingerprint() == data.train.fingerprint()  # the data are the same, whoever reads them


def staged(answer: Any) -> StagedModel:
    """A model that answers everything with ``answer``."""
    spec = Spec("own", "classify", (Stage("all", (Site(""),)),))
    return StagedModel(nn.Conv2d(3, 2, 1), spec, Pixels((4, 4)), name="own", read=lambda output, size: answer)


def test_what_a_model_calls_its_classes():
    words = vocabulary(staged(Classes(torch.zeros(1, 1000))))
    assert words[0][:2] == ("n01440764", "tench, Tinca tinca")
    assert "Tinca tinca" in words[0]
    own = {0: "great white", 1: "LABEL_1", 2: "N/A"}
    assert vocabulary(staged(Classes(torch.zeros(1, 3), own))) == {0: ("great white",), 1: (), 2: ()}
    assert vocabulary(staged(Classes(torch.zeros(1, 1000), own)))[1] == ()  # a thousand classes, not those of ImageNet
    nothing = torch.zeros(0)
    assert vocabulary(staged([Detections(nothing, nothing, nothing, own)])) == {0: ("great white",), 1: (), 2: ()}


def test_a_part_of_imagenet_by_its_wordnet_ids(tmp_path: Path):
    save_pictures(tmp_path, [f"{name}/{n}.png" for name in ("n02085620", "n01443537") for n in range(10)])
    words = vocabulary(staged(Classes(torch.zeros(1, 1000))))
    assert open_data(f"folder:{tmp_path}", Pixels((24, 24)), vocabulary=words).train.classes == {
        1: "n01443537",
        151: "n02085620",
    }

"""A folder of pictures as a new user has it."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from backsight.core import Pixels, UserError
from backsight.data import load_images, loader, open_data
from backsight.data.folder import ImageFiles, find_images
from pictures import drawn, encoded, opened, real_data, save_pictures

PIXELS = Pixels((16, 24))


def ids_of(splits: Any) -> tuple[set[str], set[str], set[str]]:
    train, validation, test = (set(part.ids) for part in (splits.train, splits.validation, splits.test))
    assert len(train | validation | test) == len(train) + len(validation) + len(test)
    return train, validation, test


def test_a_flat_folder_is_divided(tmp_path: Path) -> None:
    save_pictures(tmp_path, [f"{index}.png" for index in range(60)])
    splits = opened(f"folder:{tmp_path}", PIXELS)
    train, validation, test = ids_of(splits)
    assert (len(train), len(validation), len(test)) == (54, 3, 3)
    assert len(train | validation | test) == 60
    assert splits.train.classes == {}
    sample = splits.test[0]
    assert sample.image.shape == (3, 16, 24)
    assert sample.target.label is None


def test_folders_are_classes_where_there_are_two(tmp_path: Path) -> None:
    save_pictures(tmp_path, [f"{kind}/{index}.png" for kind in ("dog", "cat") for index in range(10)])
    splits = opened(f"folder:{tmp_path}", PIXELS)
    assert splits.train.classes == {0: "cat", 1: "dog"}
    for sample in splits.train:
        assert splits.train.classes[sample.target.label] == sample.id.split("/")[0]
    shutil.rmtree(tmp_path / "dog")
    assert opened(f"folder:{tmp_path}", PIXELS).train.classes == {}


def test_parts_that_are_there_are_used(tmp_path: Path) -> None:
    names = [f"{part}/{kind}/{n}.png" for part in ("train", "val", "test") for kind in "ab" for n in range(2)]
    save_pictures(tmp_path, [name for name in names if name != "val/a/0.png"])
    splits = opened(f"folder:{tmp_path}", PIXELS)
    for ids, part in zip(ids_of(splits), ("train", "val", "test"), strict=True):
        assert {identity.split("/")[0] for identity in ids} == {part}
    assert splits.test.classes == {0: "a", 1: "b"}
    assert splits.test[3].target.label == 1


def test_of_two_parts_validation_is_held_out_from_training(tmp_path: Path) -> None:
    save_pictures(tmp_path, [*(f"train/{n}.png" for n in range(40)), *(f"validation/{n}.png" for n in range(5))])
    train, validation, test = ids_of(opened(f"folder:{tmp_path}", PIXELS))
    assert (len(train), len(validation), len(test)) == (38, 2, 5)
    assert all(identity.startswith("validation/") for identity in test)


def test_a_class_called_test_is_no_part(tmp_path: Path) -> None:
    save_pictures(tmp_path, [f"{kind}/{n}.png" for kind in ("test", "rest") for n in range(3)])
    assert opened(f"folder:{tmp_path}", PIXELS).train.classes == {0: "rest", 1: "test"}


def test_the_division_depends_on_seed_and_id_alone(tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(40)]
    save_pictures(tmp_path, names)
    first = ids_of(opened(f"folder:{tmp_path}", PIXELS))
    assert first == ids_of(opened(f"folder:{tmp_path}", PIXELS))
    assert first != ids_of(opened(f"folder:{tmp_path}", PIXELS, seed=1))
    save_pictures(tmp_path, ["another.png"])
    assert len(first[0] - ids_of(opened(f"folder:{tmp_path}", PIXELS))[0]) <= 1


def test_unreadable_files_are_named_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_pictures(tmp_path, [f"{index}.png" for index in range(4)])
    (tmp_path / "note.jpg").write_text("not a picture")
    with caplog.at_level(logging.WARNING):
        splits = opened(f"folder:{tmp_path}", PIXELS)
    assert [record.message for record in caplog.records] == [
        f"cannot read {tmp_path}/note.jpg: it is not a picture in any known format; skipped"
    ]
    assert splits.validation[0] is not None
    assert splits.test[0] is not None
    assert list(splits.train.unreadable) == ["note.jpg"]
    assert splits.test.unreadable == {}
    assert [len(batch.ids) for batch in loader(splits.train, 8)] == [2]


def test_parts_that_are_given_are_opened_by_a_single_picture_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pictures(tmp_path, [f"{part}/{index}.png" for part in ("train", "val", "test") for index in range(30)])
    read, original = [], ImageFiles.read
    monkeypatch.setattr(ImageFiles, "read", lambda self, index: (read.append(index), original(self, index))[1])
    open_data(f"folder:{tmp_path}", PIXELS)
    assert read == [0, 0, 0]


def test_strict_fails_at_the_first_unreadable_file(tmp_path: Path) -> None:
    save_pictures(tmp_path, [f"{index}.png" for index in range(4)])
    (tmp_path / "note.jpg").write_text("not a picture")
    with pytest.raises(UserError, match=r"note\.jpg: it is not a picture.*strict"):
        opened(f"folder:{tmp_path}", PIXELS, strict=True)


def test_too_few_readable_pictures(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["a.png", "b.png"])
    with pytest.raises(UserError, match="has 2 images, it needs at least 3"):
        opened(f"folder:{tmp_path}", PIXELS)
    (tmp_path / "c.png").touch()
    with pytest.raises(UserError, match=r"1 of 3 images tried are unreadable, it needs at least 3 .*c\.png"):
        opened(f"folder:{tmp_path}", PIXELS)
    save_pictures(tmp_path / "parts", [f"train/{n}.png" for n in range(4)])
    (tmp_path / "parts" / "test").mkdir()
    (tmp_path / "c.png").rename(tmp_path / "parts" / "test" / "a.png")
    with pytest.raises(UserError, match=r"1 of 1 images tried are unreadable.*at least 1 .*test/a\.png"):
        opened(f"folder:{tmp_path}/parts", PIXELS)


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pictures(tmp_path / "photos", [f"{n}.png" for n in range(3)])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert opened("folder:~/photos", PIXELS).train.name == f"folder:{tmp_path}/photos"


def test_hidden_files_other_files_and_circles_are_left_out(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["a.png", "B.PNG", "deep/er/c.webp", ".hidden.png", ".cache/d.png"])
    (tmp_path / "readme.txt").write_text("no picture")
    (tmp_path / "deep" / "circle").symlink_to(tmp_path)
    elsewhere = save_pictures(tmp_path / ".elsewhere", ["e.png"])
    (tmp_path / "linked").symlink_to(elsewhere)
    assert find_images(tmp_path) == ["B.PNG", "a.png", "deep/er/c.webp", "linked/e.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "is empty: put pictures"),
        (["a.txt", "b.csv"], r"has no pictures among its 2 files \(the first is 'a.txt'\)"),
        (["train-0.parquet"], "'parquet:.*' would read them"),
    ],
)
def test_folders_without_pictures(tmp_path: Path, files: list[str], message: str) -> None:
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=message):
        opened(f"folder:{tmp_path}", PIXELS)


def test_a_missing_folder_and_a_file_for_a_folder(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["photos/a.png"])
    with pytest.raises(UserError, match=rf"no '{tmp_path}/photo'; is it '{tmp_path}/photos'\?"):
        opened(f"folder:{tmp_path}/photo", PIXELS)
    with pytest.raises(UserError, match=rf"is a file: 'folder:' takes the folder that it is in, '{tmp_path}/photos'"):
        opened(f"folder:{tmp_path}/photos/a.png", PIXELS)


def test_the_fingerprint_knows_files_labels_and_parts(tmp_path: Path) -> None:
    save_pictures(tmp_path, [f"{kind}/{index}.png" for kind in ("dog", "cat") for index in range(10)])

    def fingerprint() -> str:
        return opened(f"folder:{tmp_path}", PIXELS).train.fingerprint()

    first = fingerprint()
    assert first == fingerprint()
    splits = opened(f"folder:{tmp_path}", PIXELS)
    assert len({splits.train.fingerprint(), splits.validation.fingerprint(), splits.test.fingerprint()}) == 3
    drawn(50, 50).save(tmp_path / "cat" / "0.png")
    changed = fingerprint()
    assert changed != first
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "00.png")
    assert fingerprint() not in (first, changed)


def test_given_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_pictures(tmp_path, ["a.png", "folder/b.png", "folder/c.png"])
    for one in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert load_images(one, PIXELS).ids == load_images([one], PIXELS).ids == (str(one),)
    batch = load_images([tmp_path / "a.png", tmp_path / "folder"], PIXELS)
    assert batch.images.shape == (3, 3, 16, 24)
    assert batch.images.dtype == torch.float32
    assert 0.5 < batch.images.max() <= 1
    assert batch.ids == tuple(str(tmp_path / name) for name in ("a.png", "folder/b.png", "folder/c.png"))
    (tmp_path / "folder" / "b.png").write_text("text")
    with caplog.at_level(logging.WARNING):
        assert len(load_images([tmp_path / "folder"], PIXELS).ids) == 1
    assert "b.png" in caplog.text


@pytest.mark.parametrize("strict", [False, True])
def test_given_pictures_that_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture, strict: bool) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("text")
    with pytest.raises(UserError, match=r"^no picture to show: cannot read .*text\.jpg: it is not a picture[^(]*$"):
        load_images([text], PIXELS, strict=strict)
    assert caplog.text == ""
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UserError, match=r"no picture to show: cannot read .*text\.jpg: it is not a picture"):
        load_images([text, tmp_path / "empty.jpg"], PIXELS)
    with pytest.raises(UserError, match=r"no '.*/test\.jpg'; is it '.*/text\.jpg'\?"):
        load_images([tmp_path / "test.jpg"], PIXELS)
    with pytest.raises(UserError, match="none was given"):
        load_images([], PIXELS)


def test_names_that_are_not_utf8_are_shown_with_a_mark(tmp_path: Path) -> None:
    folders = [os.fsencode(tmp_path) + name for name in (b"/caf\xe9", b"/caf\xe8")]
    for folder in folders:
        Path(os.fsdecode(folder)).mkdir()
        for number in range(6):
            Path(os.fsdecode(folder + b"/\xe9%d.png" % number)).write_bytes(encoded(drawn(8, 8, number), "PNG"))
    splits = opened(f"folder:{tmp_path}", PIXELS)
    parts = (splits.train, splits.validation, splits.test)
    ids = [identity for part in parts for identity in part.ids]
    assert len(set(ids)) == 12
    assert {"caf\ufffd/\ufffd0.png", "caf\ufffd/\ufffd0.png (2)"} <= set(ids)
    assert splits.train.classes == {0: "caf\ufffd", 1: "caf\ufffd (2)"}
    assert all(part[index] is not None for part in parts for index in range(len(part)))
    assert splits.train.fingerprint()
    assert all(identity.encode() for identity in load_images(os.fsdecode(folders[0]), PIXELS).ids)


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("gone.png")
    with pytest.raises(UserError, match=r"'.*link\.png' is a link to 'gone\.png', which is not there"):
        load_images(tmp_path / "link.png", PIXELS)


def test_real_photos() -> None:
    splits = opened(f"folder:{real_data('imagenet-sample')}", Pixels((32, 32), fit="crop", crop_fraction=0.9))
    assert tuple(map(len, ids_of(splits))) == (720, 40, 40)
    (batch,) = loader(splits.test, 40)
    assert batch.images.shape == (40, 3, 32, 32)
    assert 0.3 < batch.images.mean() < 0.6


# ---- what a new user types


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

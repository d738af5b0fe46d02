"""Tables of the datasets library, from parquet files and local folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backsight.core import Pixels, UserError
from backsight.data import loader
from pictures import drawn, encoded, opened, real_data, save_pictures

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
PIXELS = Pixels((16, 24))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def table(num_rows: int, **columns: Any) -> Any:
    pictures = [{"bytes": encoded(drawn(20, 30, seed=row), "PNG"), "path": None} for row in range(num_rows)]
    labels = [row % 2 for row in range(num_rows)]
    made = datasets.Dataset.from_dict({"text": ["x"] * num_rows, "img": pictures, "label": labels, **columns})
    return made.cast_column("img", datasets.Image()).cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))


def sizes(splits: Any) -> tuple[int, int, int]:
    ids = [part.ids for part in (splits.train, splits.validation, splits.test)]
    assert len(set().union(*ids)) == sum(map(len, ids))
    return len(ids[0]), len(ids[1]), len(ids[2])


def test_one_parquet_file_is_divided(tmp_path: Path) -> None:
    path = tmp_path / "pictures.parquet"
    table(40).to_parquet(path)
    splits = opened(f"parquet:{path}", PIXELS)
    assert sizes(splits) == (36, 2, 2)
    assert sizes(opened(f"hf:{path}", PIXELS)) == (36, 2, 2)
    assert splits.train.classes == {0: "cat", 1: "dog"}
    sample = splits.train[0]
    assert sample.image.shape == (3, 16, 24)
    assert sample.target.label == int(sample.id.split("/")[1]) % 2


def test_parts_are_told_by_the_names_of_the_files(tmp_path: Path) -> None:
    for name, count in (("train", 20), ("validation", 4), ("test", 5)):
        table(count).to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    assert sizes(opened(f"parquet:{tmp_path}/data", PIXELS)) == (20, 4, 5)
    assert sizes(opened(f"hf:{tmp_path}/data", PIXELS)) == (20, 4, 5)
    assert sizes(opened(f"hf:{tmp_path}/data:test", PIXELS)) == (3, 1, 1)


def test_saved_data_sets_and_folders_of_pictures(tmp_path: Path) -> None:
    datasets.DatasetDict(train=table(20), test=table(5)).save_to_disk(tmp_path / "saved")
    assert sizes(opened(f"hf:{tmp_path}/saved", PIXELS)) == (19, 1, 5)
    assert sizes(opened(f"hf:{tmp_path}/saved:test", PIXELS)) == (3, 1, 1)
    table(9).select([8, 7, 6, 5]).save_to_disk(tmp_path / "one")
    splits = opened(f"hf:{tmp_path}/one", PIXELS)
    assert sizes(splits) == (2, 1, 1)
    assert splits.train.fingerprint()
    save_pictures(tmp_path / "photos", [f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(4)])
    photos = opened(f"hf:{tmp_path}/photos", PIXELS)
    assert sizes(photos) == (6, 1, 1)
    assert photos.train.classes == {0: "cat", 1: "dog"}
    assert photos.train[0] is not None
    assert photos.train.fingerprint()


def test_plain_bytes_without_the_librarys_features(tmp_path: Path) -> None:
    rows = {"image": [encoded(drawn(20, 30, seed=n), "PNG") for n in range(5)], "label": [0, 1, -1, 3, 4]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "plain.parquet")
    splits = opened(f"parquet:{tmp_path}/plain.parquet", PIXELS)
    parts = (splits.train, splits.validation, splits.test)
    labels = {sample.id: sample.target.label for part in parts for sample in part}
    assert labels == {"plain/0": 0, "plain/1": 1, "plain/2": None, "plain/3": 3, "plain/4": 4}
    assert splits.train.fingerprint()


def test_broken_rows_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = [{"bytes": encoded(drawn(20, 30, seed=n), "PNG"), "path": None} for n in range(5)]
    bad = [{"bytes": b"text", "path": "a.png"}, {"bytes": None, "path": None}, {"bytes": None, "path": "/gone.png"}]
    parquet.write_table(pyarrow.table({"image": good + bad}), tmp_path / "rows.parquet")
    splits = opened(f"parquet:{tmp_path}/rows.parquet", PIXELS)
    assert sizes(splits) == (6, 1, 1)
    assert sorted(splits.train.unreadable) == ["rows/5", "rows/6", "rows/7"]
    assert "the row has no picture" in caplog.text
    assert sum(len(batch.ids) for batch in loader(splits.train, 4)) == 3
    assert splits.train.fingerprint()


def test_the_fingerprint_knows_pictures_and_labels(tmp_path: Path) -> None:
    def fingerprint(made: Any) -> str:
        made.to_parquet(tmp_path / "pictures.parquet")
        return opened(f"parquet:{tmp_path}/pictures.parquet", PIXELS).test.fingerprint()

    first = fingerprint(table(6))
    assert first == fingerprint(table(6))
    assert len({first, fingerprint(table(7)), fingerprint(table(6, label=[0] * 6))}) == 3


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_text("text")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "words.parquet")
    (tmp_path / "empty").mkdir()
    datasets.DatasetDict(train=table(4)).save_to_disk(tmp_path / "saved")
    for spec, message in {
        f"parquet:{tmp_path}/brokn.parquet": r"is it '.*broken\.parquet'\?",
        f"parquet:{tmp_path}/broken.parquet": "cannot load",
        f"parquet:{tmp_path}/words.parquet": "no column of pictures: its columns are text",
        f"parquet:{tmp_path}/empty": r"has no \.parquet files",
        f"hf:{tmp_path}/nowhere": "cannot load .*owner/name on the hub",
        f"hf:{tmp_path}/empty": "cannot load",
        f"hf:{tmp_path}/saved:tset": "cannot load",
    }.items():
        with pytest.raises(UserError, match=message):
            opened(spec, PIXELS)


def test_real_photos() -> None:
    splits = opened(f"parquet:{real_data('cifar10')}", Pixels((32, 32)))
    assert sizes(splits) == (47_500, 2_500, 10_000)
    assert splits.test.classes[9] == "truck"
    batch = next(iter(loader(splits.test, 64, shuffle=True)))
    assert batch.images.shape == (64, 3, 32, 32)
    assert all(target.label in splits.test.classes for target in batch.targets)

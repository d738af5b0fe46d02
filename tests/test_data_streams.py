"""Data without a length: every picture once a pass, whoever reads it, and again from any batch on."""

from __future__ import annotations

import gzip
import io
import random
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from backsight.core import Pixels, UserError
from backsight.data import Splits, Stream, loader, open_data, streams
from backsight.data.loader import Position
from backsight.data.streams import Encoded, part_of
from backsight.data.tar import TarFiles, cache_folder, expand

# Python 3.12 and later warn of every fork beside a thread; torch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

PIXELS = Pixels((16, 16))


def picture(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (20, 16), (number % 256, 7 * number % 256, 90)).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    """An archive of these files, compressed as its name says."""
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_shard(path: Path, numbers: Sequence[int], broken: Sequence[int] = ()) -> None:
    members = {}
    for number in numbers:
        content = b"no picture" if number in broken else picture(number)
        kinds = {"png": content, "cls": str(number % 10).encode(), "json": b"{}"}
        members |= {f"photos/{number:06d}.{kind}": part for kind, part in kinds.items()}
    write_tar(path, members)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tars(tmp_path: Path) -> str:
    for shard in range(4):
        write_shard(tmp_path / f"train-{shard:03d}.tar", range(60 * shard, 60 * shard + 60))
    return f"wds:{tmp_path}/train-{{000..003}}.tar"


@pytest.fixture
def shards(tars: str) -> str:
    """The same, compressed: a stream."""
    for path in Path(tars.removeprefix("wds:")).parent.glob("*.tar"):
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    return f"{tars}.gz"


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    """Three parquet files of 60 pictures: a stream."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    (tmp_path / "parquet").mkdir()
    for shard in range(3):
        rows = {"image": [{"bytes": picture(60 * shard + number), "path": None} for number in range(60)]}
        table = datasets.Dataset.from_dict({**rows, "label": [number % 2 for number in range(60)]}, features=features)
        table.to_parquet(tmp_path / f"parquet/part-{shard}.parquet")
    return f"stream:{tmp_path}/parquet"


# ---- tar files by the places of their members


def test_tar_files_are_data_with_a_length(tars: str) -> None:
    splits = open_data(tars, PIXELS)
    every = {identity for part in vars(splits).values() for identity in part.ids}
    assert len(every) == sum(map(len, vars(splits).values())) == 240
    for part, data in vars(splits).items():
        assert all(part_of(identity, 0) == part for identity in data.ids)
        for index in range(0, len(data), 20):
            sample = data[index]
            number = int(data.ids[index].rpartition("/")[2])
            assert (sample.target.label, int(sample.image[0, 0, 0])) == (number % 10, number)


def test_members_are_sought_once_and_read_by_their_places(tars: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_data(tars, PIXELS).train
    monkeypatch.setattr("tarfile.open", None)  # nobody may call it
    again = open_data(tars, PIXELS).train
    assert (again.ids, again.fingerprint()) == (first.ids, first.fingerprint())
    batches = [batch.ids for batch in loader(again, 8, shuffle=True)]
    assert [batch.ids for batch in loader(again, 8, shuffle=True, start=20, workers=2)] == batches[20:]
    assert len(list((cache_folder() / "tar").iterdir())) == 4


def test_tar_files_that_are_not_there_are_counted(tars: str, caplog: pytest.LogCaptureFixture) -> None:
    Path(tars.removeprefix("wds:").replace("{000..003}", "002")).unlink()
    assert sum(map(len, vars(open_data(tars, PIXELS)).values())) == 180
    assert "1 of 4 files are not there" in caplog.text


def test_tar_files_are_read_through_fsspec(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{number}.png": picture(number) for number in range(120)})
    fsspec.filesystem("memory").pipe("/shards/a-00.tar", (tmp_path / "a.tar").read_bytes())
    data = open_data("wds:memory://shards/a-{00..00}.tar", PIXELS).train
    assert data[5].id == data.ids[5]


# ---- streams


def opened(spec: str, **options: bool) -> tuple[Stream, Splits]:
    splits = open_data(spec, PIXELS, **options)
    assert isinstance(splits.train, Stream)
    return splits.train, splits


def ids(stream: Stream, num_batches: int, size: int = 8, **options: int) -> list[tuple[str, ...]]:
    found = stream.batches(size, **options)
    return [next(found).ids for _ in range(num_batches)]


def test_a_stream_is_divided_by_the_ids_alone(shards: str) -> None:
    stream, splits = opened(shards)
    whole = [each for shard in range(4) for each in stream.shards.read(shard)]
    held = {part: [each.id for each in whole if part_of(each.id, 0) == part] for part in ("validation", "test")}
    assert list(splits.validation.ids) == held["validation"]
    assert list(splits.test.ids) == held["test"]
    seen = [identity for batch in ids(stream, 40) for identity in batch]
    assert not set(seen) & {*held["validation"], *held["test"]}
    num_train = len(whole) - len(held["validation"]) - len(held["test"])
    assert len(whole) == 240
    assert len(set(seen[:num_train])) == num_train  # a pass has every picture once
    assert seen[:50] != sorted(seen[:50])
    with pytest.raises(TypeError, match="nobody knows how long"):
        len(stream)


def test_images_and_classes_are_those_of_the_file(shards: str) -> None:
    stream, _ = opened(shards)
    batch = next(stream.batches(8))
    assert batch.images.shape == (8, 3, 16, 16)
    for identity, image, target in zip(batch.ids, batch.images, batch.targets, strict=True):
        number = int(identity.rpartition("/")[2])
        assert target.label == number % 10
        assert (image[0] * 255).round().unique().tolist() == [number % 256]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [3, 12])
def test_a_stream_goes_on_exactly_where_it_was(shards: str, workers: int, start: int) -> None:
    stream, _ = opened(shards)
    whole = ids(stream, start + 4, workers=workers)
    assert ids(stream, 4, start=start, workers=workers) == whole[start:]


def count_read(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the pictures that the stream is given, from now on."""
    whole, found = stream.shards.read, []

    def read(index: int, start: int = 0) -> Iterator[Encoded]:
        for each in whole(index, start):
            found.append(each.id)
            yield each

    monkeypatch.setattr(stream.shards, "read", read)
    return found


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("start", [3, 100])
def test_a_stream_goes_on_without_reading_all_again(
    kind: str, start: int, shards: str, parquet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that it has seen it reads the last block again, and the next one ahead."""
    monkeypatch.setattr(streams, "BUFFER", 20)
    stream = opened(shards if kind == "tar" else parquet)[0]
    ids(stream, start)
    known = {**stream.positions}
    whole = ids(stream, start + 4)
    stream.positions.update(known)
    read = count_read(stream, monkeypatch)
    assert ids(stream, 4, start=start) == whole[start:]
    assert len(read) < 4 * 8 + 3 * 20 + 20


def test_workers_go_on_at_their_shards(
    parquet: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streams, "BUFFER", 10)
    caplog.set_level("INFO")
    stream = opened(parquet)[0]
    ids(stream, 31, size=5, workers=2)
    known = {**stream.positions}
    whole = ids(stream, 35, size=5, workers=2)
    stream.positions.update(known)
    assert ids(stream, 4, size=5, start=31, workers=2) == whole[31:]
    (again,) = re.findall(r"goes on at batch 31: (\d+) pictures before it are read again", caplog.text)
    assert int(again) < 2 * 10


def test_positions_of_another_number_of_readers_or_of_later_are_not_used(shards: str) -> None:
    stream, _ = opened(shards)
    alone = ids(stream, 10)
    stream.positions[0, 2] = Position(0, 2, 40)
    assert ids(stream, 2) == alone[:2]
    assert ids(stream, 2, rank=0, ranks=2, start=3) == ids(opened(shards)[0], 5, rank=0, ranks=2)[3:]


@pytest.mark.parametrize("ranks", [2, 3, 8], ids=["two", "three", "more-than-shards"])
def test_processes_share_the_pictures(shards: str, ranks: int) -> None:
    stream, _ = opened(shards)
    passes = [[each.id for _, each in stream._pass(Position(rank, ranks))] for rank in range(ranks)]
    every = [identity for one in passes for identity in one]
    assert len(set(every)) == len(every)
    assert set(every) == {each.id for _, each in stream._pass(Position(0, 1))}
    assert all(passes)


def test_broken_pictures_and_shards_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shard(tmp_path / "a.tar", range(100), broken=[3])
    write_shard(tmp_path / "b.tar", range(100, 200))
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) // 2 + 700])
    data = open_data(f"wds:{tmp_path}/*.tar", PIXELS).train
    seen = {identity for batch in loader(data, 8) for identity in batch.ids}
    assert "a.tar/photos/000003" not in seen
    assert list(data.unreadable) == ["a.tar/photos/000003"]
    assert sum(identity.startswith("b.tar") for identity in seen) >= 30
    told = [record.getMessage() for record in caplog.records]
    assert sum("000003" in line for line in told) == 1
    assert any("b.tar to its end" in line for line in told)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2"])
@pytest.mark.parametrize("place", [0.3, 0.7])
def test_a_damaged_archive_is_named_and_read_up_to_the_damage(
    kind: str, place: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, draw = tmp_path / f"train.{kind}", random.Random(0)
    contents = [draw.randbytes(500) + bytes(draw.choices(b"abcdefgh", k=9_500)) for _ in range(40)]
    write_tar(path, {f"{number:06d}.png": content for number, content in enumerate(contents)})
    whole = bytearray(path.read_bytes())
    first = int(place * len(whole))
    whole[first : first + 11_000] = bytes(each ^ 255 for each in whole[first : first + 11_000])
    path.write_bytes(whole)
    found = [each.content for each in TarFiles(str(path)).read(0)]
    assert len(found) < 40
    assert found[:-3] == contents[: max(0, len(found) - 3)]
    assert kind == "tar.bz2" or len(found) > 5  # which has blocks of 900 kB
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"cannot read {path} to its end: " in told
    assert "\n" not in told


def test_a_compressed_archive_may_be_damaged_anywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Some places make zlib itself complain, others a header of tar, the rest the checksum at the end."""
    path, draw = tmp_path / "train.tar.gz", random.Random(0)
    write_tar(path, {f"{number}.png": draw.randbytes(12_000) for number in range(40)})
    whole = path.read_bytes()
    places = range(5_000, len(whole), 17_000)
    for place in places:
        path.write_bytes(whole[:place] + bytes(each ^ 255 for each in whole[place : place + 8]) + whole[place + 8 :])
        list(TarFiles(str(path)).read(0))
    assert len(caplog.records) == len(places)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lost_connection_is_one_line(shards: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: TarFiles, index: int, start: int = 0) -> Iterator[Encoded]:
        yield from whole(self, index, start)
        raise ConnectionError("the hub\nhas gone")

    stream, whole = opened(shards)[0], TarFiles.read
    monkeypatch.setattr(TarFiles, "read", lost)
    with pytest.raises(UserError, match="the images: the hub has gone; make room or mend it"):
        ids(stream, 40, workers=workers)


def test_parquet_files_are_streamed(parquet: str) -> None:
    stream, splits = opened(parquet)
    assert len(stream.shards) == 3
    assert stream.classes == {0: "cat", 1: "dog"}
    num_train = 180 - len(splits.validation) - len(splits.test)
    seen = [identity for batch in ids(stream, 30, size=6) for identity in batch]
    assert len(set(seen[:num_train])) == num_train
    assert ids(stream, 2, start=5) == ids(stream, 7)[5:]
    assert next(stream.batches(4)).images.shape == (4, 3, 16, 16)


def test_workers_share_the_files_of_a_stream(parquet: str) -> None:
    """Of three files: the library must not divide it among the workers once more."""
    stream, _ = opened(parquet)
    found = ids(stream, 12, size=4, workers=2)
    files = [{identity.partition("/")[0] for batch in found[first::2] for identity in batch} for first in range(2)]
    assert set.union(*files) == {"0", "1", "2"}
    assert not set.intersection(*files)


def test_names_with_numbers_are_expanded() -> None:
    assert list(expand("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert len(list(expand("{0..1}/{00..02}"))) == 6
    assert list(expand("plain.tar")) == ["plain.tar"]


@pytest.mark.parametrize("braces", ["{0..99999999999}", "{0..99}{0..99}"])
def test_a_range_of_more_files_than_there_can_be_is_one_line(braces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backsight.data.tar.MOST_FILES", 1000)
    with pytest.raises(UserError, match="more than 1,000 files"):
        TarFiles(f"train-{braces}.tar")


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", range(3))
    for spec, message in {
        f"wds:{tmp_path}/trian-0.tar": "is it '",
        f"wds:{tmp_path}/train-0.tar": "too few pictures",
        "wds:no-such-store://a.tar": "no-such-store",
        f"stream:{tmp_path}/none.parquet": "cannot load",
    }.items():
        with pytest.raises(UserError, match=message):
            open_data(spec, PIXELS)
    assert len(TarFiles(f"{tmp_path}/train-0.tar")) == 1


def test_names_with_dots_in_them_are_told(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"img.{number:05d}.png": b"" for number in range(20)})
    with pytest.raises(UserError, match=r"have the same key, as img\.00000\.png, .*rename them"):
        open_data(f"wds:{tmp_path}/a.tar", PIXELS)


@pytest.mark.parametrize("label", [b'{"label": 7}', b'{"cls": "7"}', b"7"])
def test_labels_in_json(tmp_path: Path, label: bytes) -> None:
    kind = "cls" if label == b"7" else "json"
    content = picture(1)
    for part in ("a", "b"):
        names = [f"{part}{number}" for number in range(40)]
        sample = {"png": content, kind: label}
        write_tar(tmp_path / f"{part}.tar", {f"{name}.{end}": sample[end] for name in names for end in sample})
    splits = open_data(f"wds:{tmp_path}/{{a,b}}.tar", PIXELS)
    assert {sample.target.label for sample in map(splits.test.__getitem__, range(len(splits.test))) if sample} == {7}

"""The order of batches, whoever decodes them, and what workers send home."""

from __future__ import annotations

import errno
import os
import pickle
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backsight.core import Pixels, UserError
from backsight.data import Batch, Target, batches, collate, loader
from backsight.data.cache import ImageCache
from backsight.data.loader import pack, unpack
from backsight.data.world import World
from numerics import assert_rounding
from pictures import opened, save_pictures

PIXELS = Pixels((16, 24))

# Python 3.12 and later warn of every fork beside a thread; torch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def assert_same_batches(found: list[Batch], expected: list[Batch], flipped: float = 0.0) -> None:
    """The share ``flipped`` of the pixels may be rounded to the next of 256 values."""
    assert [batch.ids for batch in found] == [batch.ids for batch in expected]
    for one, other in zip(found, expected, strict=True):
        assert float((one.images - other.images).abs().mean()) <= flipped / 255
        assert_rounding(list(map(vars, one.targets)), list(map(vars, other.targets)), 0.0)


@given(st.integers(0, 200), st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 1000))
def test_every_item_once(num_items: int, batch_size: int, seed: int, epoch: int) -> None:
    made = [*batches(num_items, batch_size, seed=seed, epoch=epoch, shuffle=True)]
    assert sorted(chain.from_iterable(made)) == list(range(num_items))
    assert all(len(batch) == batch_size for batch in made[:-1])
    assert made == [*batches(num_items, batch_size, seed=seed, epoch=epoch, shuffle=True)]


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = [next(batches(50, 50, seed=seed, epoch=epoch, shuffle=True)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert [*batches(5, 2)] == [[0, 1], [2, 3], [4]]


def test_workers_change_nothing(tmp_path: Path) -> None:
    save_pictures(tmp_path, [f"{kind}/{n}.png" for kind in "ab" for n in range(12)])
    data = opened(f"folder:{tmp_path}", PIXELS).train
    alone = list(loader(data, 5, seed=3, epoch=2, shuffle=True))
    assert_same_batches(alone, list(loader(data, 5, seed=3, epoch=2, shuffle=True, workers=2)))
    assert [len(batch.ids) for batch in alone] == [5, 5, 5, 5, 2]
    by_id = {sample.id: sample for sample in data}
    assert_same_batches(alone, [collate([by_id[identity] for identity in batch.ids]) for batch in alone])


def test_start_leaves_out_batches_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pictures(tmp_path, [f"{n}.png" for n in range(20)])
    data = opened(f"folder:{tmp_path}", PIXELS).train
    whole = list(loader(data, 4, shuffle=True))
    decoded = []
    monkeypatch.setattr(type(data), "__getitem__", lambda self, i: decoded.append(i) or self.source[self.indices[i]])
    assert_same_batches(whole[3:], list(loader(data, 4, shuffle=True, start=3)))
    assert len(decoded) == len(data) - 3 * 4
    assert list(loader(data, 4, start=99)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_left_alone(tmp_path: Path, workers: int) -> None:
    save_pictures(tmp_path, [f"{n}.png" for n in range(4)])
    data = opened(f"folder:{tmp_path}", PIXELS).train
    before = torch.get_rng_state()
    list(loader(data, 2, shuffle=True, workers=workers))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_come_home_from_the_workers(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    save_pictures(tmp_path, [f"{n}.png" for n in range(12)])
    data = opened(f"folder:{tmp_path}", PIXELS).train
    broken = data.ids[1]
    (tmp_path / broken).write_text("text")
    for _ in range(2):
        assert [len(batch.ids) for batch in loader(data, 4, workers=workers)] == [3, 4, 2]
    assert list(data.unreadable) == [broken]
    assert len(caplog.records) == 1
    for identity in data.ids:
        (tmp_path / identity).write_text("text")
    assert sum(len(batch.ids) for batch in loader(data, 4, workers=workers)) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_strict_is_one_line_from_a_worker_too(tmp_path: Path, workers: int) -> None:
    save_pictures(tmp_path, [f"{n}.png" for n in range(5)])
    data = opened(f"folder:{tmp_path}", PIXELS, strict=True).train
    (tmp_path / data.ids[0]).write_text("text")
    with pytest.raises(UserError) as caught:
        list(loader(data, 2, workers=workers))
    assert str(caught.value).startswith(f"cannot read {tmp_path}")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_one_line_from_a_worker_too(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> Path:
        del content
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    save_pictures(tmp_path / "pictures", [f"{n}.png" for n in range(5)])
    data = opened(f"folder:{tmp_path / 'pictures'}", PIXELS).train
    monkeypatch.setattr("backsight.data.cache.write_bytes", full)
    with pytest.raises(UserError, match=f"{tmp_path}/kept/.*: No space left on device; make room"):
        list(loader(ImageCache(data, PIXELS, tmp_path / "kept", 1e9), 2, workers=workers))


def test_too_little_shared_memory_is_one_line_and_no_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    save_pictures(tmp_path, [f"{n}.png" for n in range(5)])
    data = opened(f"folder:{tmp_path}", PIXELS).train
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    assert len(list(loader(data, 2, workers=0))) > 0
    with pytest.raises(UserError, match="--shm-size 8g"):
        list(loader(data, 2, workers=1))


def test_data_that_makes_batches_is_asked_for_them() -> None:
    data: Any = World(size=(32, 32), length=10)
    expected = [data.batch([0, 1, 2, 3]), data.batch([4, 5, 6, 7]), data.batch([8, 9])]
    assert_same_batches(expected, list(loader(data, 4)))
    # A worker draws with one thread, which computes the ends of the others' parts another way.
    assert_same_batches(expected, list(loader(data, 4, workers=1)), flipped=1e-3)


def test_targets_survive_packing() -> None:
    def target(count: int, label: int | None) -> Target:
        boxes, masks = torch.rand(count, 4), torch.rand(count, 3, 5) > 0.5
        return Target(boxes, torch.arange(count), masks, torch.rand(count) > 0.5, label, {"hue": torch.rand(count, 2)})

    targets = [target(2, None), target(0, 3), target(5, 0)]
    assert_rounding(list(map(vars, unpack(pack(targets)))), list(map(vars, targets)), 0.0)
    assert unpack(pack([])) == ()


def test_data_sets_can_be_sent_to_another_process(tmp_path: Path) -> None:
    save_pictures(tmp_path, [f"{n}.png" for n in range(4)])
    data = opened(f"folder:{tmp_path}", PIXELS).train
    copy = pickle.loads(pickle.dumps(data))
    assert_same_batches(list(loader(data, 4)), list(loader(copy, 4)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_come_on_the_device(tmp_path: Path) -> None:
    save_pictures(tmp_path, [f"{n}.png" for n in range(8)])
    data = opened(f"folder:{tmp_path}", PIXELS).train
    for batch, here in zip(loader(data, 2, workers=1, device="cuda"), loader(data, 2), strict=True):
        assert batch.images.device.type == "cuda"
        torch.testing.assert_close(batch.images.cpu(), here.images, atol=1e-6, rtol=0)

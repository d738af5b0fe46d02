"""What makes training quicker or smaller changes no result: memory formats, micro-batches, caches, compiled parts."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils._python_dispatch import TorchDispatchMode

from backsight import io as files
from backsight.core import Key, Layout, Pixels, UserError
from backsight.data import Batch, Sample, Target, loader, open_data
from backsight.data.cache import ImageCache, pack_sample, read_sample
from backsight.distributed import Processes
from backsight.engine import StagedModel
from backsight.inverses import build_inverse
from backsight.models import MODELS
from backsight.options import TrainOptions, parse_bytes
from backsight.tasks import Modular, build_chains, make_plans
from backsight.training import Run, RunFolder, kernels, memory
from backsight.training import loop as loop_module
from backsight.training.checkpoints import random_states
from backsight.training.feature_cache import FeatureCache, open_feature_cache
from backsight.training.kernels import choose_memory_format, freeze_biases, map_sizes
from backsight.training.loop import split
from backsight.training.memory import Need, bytes_of_one, choose_micro_batch, in_units
from damage import flip
from numerics import assert_rounding
from pictures import save_pictures
from small import build_small, random_images

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> StagedModel:
    return build_small("detr")


@pytest.fixture(scope="module")
def task(model: StagedModel) -> Modular:
    """Modular training of all its inverses, for those who only ask it something."""
    return Modular(model, build_chains(model, make_plans(model), [0]))


def write_pictures(folder: Path) -> Path:
    """A folder with the three parts of a data set."""
    parts = {"train": 10, "val": 2, "test": 2}
    return save_pictures(folder, [f"{part}/{index:02d}.png" for part, count in parts.items() for index in range(count)])


def open_run(model: StagedModel, out: Path, **changes: Any) -> Run:
    given = {"steps": 6, "seeds": 1, "batch_size": 5, "workers": 0, "inverse": LAYER_NORM_ONLY, "precision": "fp32"}
    given["recipe"] = (
        "paper"  # at the fast recipe's rate a gradient of 0, which is rounding alone, moves ten times as far
    )
    options = TrainOptions(**{"data": "world", "out": out, **given, **changes})
    return Run(model, options, RunFolder(out))


LAYER_NORM_ONLY = ("backbone=local",)
"""No inverse with BatchNorm, whose statistics are those of a micro-batch."""


def train(run: Run, steps: int = 3) -> dict[str, Tensor]:
    """A few steps; all weights afterwards."""
    loop, number = run.loop(), 0
    while loop.state.step < steps:
        for batch in run.epoch(number, 0):
            loop.step(batch)
            if loop.state.step == steps:
                break
        number += 1
    return {name: value.clone() for chain in run.chains for name, value in chain.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


# ---- only what is needed


def test_the_forward_pass_stops_where_training_needs_no_more(small_model: Callable[[str], StagedModel]) -> None:
    vit = small_model("vit")
    chains = build_chains(vit, {"backbone": make_plans(vit)["backbone"]}, [0])
    ran: list[str] = []
    hooks = [block.register_forward_hook(lambda *_: ran.append("block")) for block in vit.module.blocks]  # type: ignore[union-attr]
    (key, _, _), *others = Modular(vit, chains).losses(random_images(vit))
    for hook in hooks:
        hook.remove()
    assert (key, others, ran) == (Key(0, "backbone"), [], [])


class Operations(TorchDispatchMode):
    """What is asked of a device, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


def test_no_number_travels_to_the_device_to_weigh_padded_images() -> None:
    padded = build_small("detr").fitting("pad")
    task = Modular(padded, build_chains(padded, make_plans(padded), [0]))
    valid = torch.ones(2, *padded.pixels.size, dtype=torch.bool)
    batch = Batch(random_images(padded), ("a", "b"), (Target(), Target()), valid)
    with Operations() as operations:
        found = task.weights(batch)
    assert {int(found[Key(0, stage)]) for stage in ("decoder", "backbone")} == {
        int(valid[:, ::32, ::32].sum()),
        valid.numel(),
    }
    assert "lift_fresh.default" not in operations.names  # a tensor made of a number on the host, to be copied
    assert "_local_scalar_dense.default" not in operations.names  # a number that is read back


# ---- memory formats


def deconvolution(width: int = 8) -> Any:
    torch.manual_seed(0)
    return build_inverse("deconvolution", Layout(12, width, ((3, 4),)), Layout.of_image((96, 128)), {})


def test_late_layers_of_an_inverse_have_their_channels_last_and_give_the_same() -> None:
    inverse = deconvolution()
    features = torch.randn(2, 12, 8)
    before = inverse(features)
    names = list(inverse.state_dict())
    sizes = map_sizes(inverse)
    assert list(sizes.values())[:1] == [8 * 12]
    choose_memory_format([inverse], CPU)
    last = [not layer.weight.is_contiguous() for layer in sizes]
    assert not last[1]
    assert last[-1]
    assert list(inverse.state_dict()) == names
    torch.testing.assert_close(inverse(features), before)


@pytest.mark.parametrize("family", MODELS)
def test_every_inverse_has_its_channels_last_on_a_gpu(family: str, small_model: Callable[[str], StagedModel]) -> None:
    model = small_model(family)
    (chain,) = build_chains(model, make_plans(model), range(1))
    choose_memory_format([network for _, network in chain.items()], torch.device("cuda"))
    for layer in chain.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_bias_in_front_of_a_batch_norm_is_frozen_and_no_other_gradient_changes() -> None:
    inverse, features = deconvolution().double(), torch.randn(2, 12, 8, dtype=torch.float64)
    target = torch.rand(2, 3, 96, 128, dtype=torch.float64)

    def gradients() -> dict[str, torch.Tensor | None]:
        inverse.zero_grad(set_to_none=True)
        (inverse(features) - target).square().mean().backward()
        return {name: each.grad for name, each in inverse.named_parameters()}

    before = gradients()
    freeze_biases([inverse])
    after = gradients()
    frozen = {name for name, each in after.items() if each is None}
    convolutions = [f"layers.{place}.bias" for place in range(0, 24, 3)]
    assert frozen == set(convolutions)
    largest = max(each.abs().max() for each in before.values() if each is not None)
    for name, gradient in before.items():
        expected = after[name] if name not in frozen else torch.zeros_like(gradient)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=float(1e-9 * largest))


def test_a_bias_in_front_of_a_batch_norm_that_does_not_follow_the_batch_is_learned() -> None:
    """As in a forward model, which joint training leaves in evaluation mode: its BatchNorm subtracts another mean."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    freeze_biases([network])
    network(torch.rand(2, 3, 8, 8)).square().sum().backward()
    bias = network.get_parameter("0.bias")
    assert bias.grad.abs().max() > 1e-3


def test_finding_the_maps_changes_nothing() -> None:
    inverse = deconvolution()
    state = copy.deepcopy(inverse.state_dict())
    assert inverse.training
    map_sizes(inverse)
    assert inverse.training
    assert all(torch.equal(value, state[name]) for name, value in inverse.state_dict().items())


def test_moments_of_another_memory_format_are_rearranged(model: StagedModel, tmp_path: Path) -> None:
    """A fused kernel ignores strides: moments that lie otherwise than the weights would be another's."""
    run = open_run(model, tmp_path, inverse=(), steps=3, recipe="fast")
    loop = run.loop()
    batch = next(iter(run.epoch(0, 0)))
    loop.step(batch)
    before = {
        "state": loop.state.state_dict(),
        "networks": {str(key): copy.deepcopy(each.state_dict()) for key, each in run.task.networks.items()},
        "optimisers": {str(key): copy.deepcopy(each.state_dict()) for key, each in loop.updates.items()},
        "random": [random_states()],
    }
    optimisers = [each for both in before["optimisers"].values() for each in both.values()]
    for moments in (moments for each in optimisers for moments in each["state"].values()):
        for name in moments.keys() - {"step"}:
            moments[name] = moments[name].contiguous()
    loop.load(before)
    loop.step(batch)
    after = {name: value.clone() for name, value in run.chains[0].state_dict().items()}
    again = open_run(model, tmp_path, inverse=(), steps=3, recipe="fast")
    loop = again.loop()
    loop.step(batch)
    loop.step(batch)
    assert_same(dict(again.chains[0].state_dict()), after, 1e-6)


# ---- micro-batches


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_train_as_the_whole_batch(model: StagedModel, tmp_path: Path, size: int) -> None:
    whole = train(open_run(model, tmp_path))
    assert_same(whole, train(open_run(model, tmp_path, micro_batch=size)), 1e-4)


def test_padded_micro_batches_weigh_by_what_is_under_the_pictures() -> None:
    padded = build_small("detr").fitting("pad")
    chains = build_chains(padded, make_plans(padded, LAYER_NORM_ONLY), [0])
    task = Modular(padded, chains)
    images = random_images(padded, batch=3)
    valid = torch.ones(3, *padded.pixels.size, dtype=torch.bool)
    valid[0, 32:], valid[1, :, 40:] = False, False
    batch = Batch(images, ("a", "b", "c"), (Target(), Target(), Target()), valid)
    whole = {key: loss for key, loss, _ in task.losses(images, valid)}
    found = dict.fromkeys(whole, torch.tensor(0.0))
    for part, counts in split(batch, 2, task, Processes())[1]:
        for name, loss, _ in task.losses(part.images, part.valid, counts=counts):
            found[name] = found[name] + loss
    for name, loss in whole.items():
        torch.testing.assert_close(found[name], loss)


def test_a_batch_that_fits_stays_whole(model: StagedModel, task: Modular) -> None:
    batch = Batch(random_images(model), ("a", "b"), (Target(), Target()))
    for size in (None, 2):
        assert split(batch, size, task, Processes()) == (2, [(batch, None)])


# ---- memory


def test_what_an_image_takes_is_found_and_nothing_changed(model: StagedModel, task: Modular) -> None:
    before = copy.deepcopy(task.chains[0].state_dict())
    random = torch.get_rng_state()
    height, width = model.pixels.size
    assert bytes_of_one(task, "fp32") > 4 * 3 * height * width  # the image that is painted, at the least
    assert all(torch.equal(value, before[name]) for name, value in task.chains[0].state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize(
    ("number", "text"), [(2**20, "1MiB"), (3 * 2**29, "1.5GiB"), (1000, "1000B"), (5 * 2**10, "5KiB"), (0, "0B")]
)
def test_bytes_are_written_as_a_user_writes_them(number: int, text: str) -> None:
    assert (in_units(number), parse_bytes(text)) == (text, number)


@pytest.mark.parametrize(
    ("memory_there", "expected"),
    [("8MiB", None), ("5MiB", 3), ("4MiB", 3), ("2.5MiB", 1)],
    ids=["all", "some, in parts of one size", "some", "one"],
)
def test_as_many_images_pass_as_fit(
    memory_there: str, expected: int | None, task: Modular, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "need_of", lambda *_: Need(2**20, 2**20))
    given = TrainOptions(batch_size=5, memory=memory_there)
    assert choose_micro_batch(task, given, "fp32", {})[0] == expected
    with pytest.raises(UserError, match="too little: one image needs 2MiB"):
        choose_micro_batch(task, TrainOptions(memory="1.5MiB"), "fp32", {})


def test_memory_that_is_short_is_given_back_and_no_weight_changes(
    model: StagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(open_run(model, tmp_path / "ample"))
    given_back: list[bool] = []
    monkeypatch.setattr(loop_module, "give_back_memory", lambda: given_back.append(True))
    monkeypatch.setattr(loop_module, "memory_in_use", lambda device: 2**60)
    assert_same(expected, train(open_run(model, tmp_path / "short")), 0)
    assert given_back


def test_by_itself_a_run_stays_within_what_is_free(task: Modular, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "need_of", lambda *_: Need(0, 2**40))
    with pytest.raises(UserError, match="of memory is too little"):
        choose_micro_batch(task, TrainOptions(), "fp32", {})
    assert choose_micro_batch(task, TrainOptions(micro_batch=3), "fp32", {}) == (3, None)


def test_a_resumed_run_keeps_the_micro_batch_that_fitted_before(task: Modular) -> None:
    before = {"micro_batch": 3, "options": {"memory": "8GiB"}}
    of_0_1 = {"micro_batch": None, "options": {"memory": None}}
    assert choose_micro_batch(task, TrainOptions(memory="8GiB"), "fp32", before)[0] == 3
    assert (
        choose_micro_batch(task, TrainOptions(memory="900GiB"), "fp32", before)[0] is None
    )  # another machine, perhaps
    assert choose_micro_batch(task, TrainOptions(), "fp32", of_0_1)[0] is None


# ---- features on disk


def test_a_run_with_a_feature_cache_is_the_run_without(model: StagedModel, tmp_path: Path) -> None:
    data = {"data": f"folder:{write_pictures(tmp_path / 'pictures')}"}
    plain = train(open_run(model, tmp_path / "run", **data), 6)
    first = train(open_run(model, tmp_path / "run", feature_cache=tmp_path / "cache", **data), 6)
    again = train(open_run(model, tmp_path / "run", feature_cache=tmp_path / "cache", **data), 6)
    assert_same(plain, first, 2e-2)  # their features are rounded to bfloat16
    assert_same(first, again, 1e-4)


def batch_of(model: StagedModel, *ids: str) -> Batch:
    return Batch(random_images(model, batch=len(ids), seed=len(ids)), ids, tuple(Target() for _ in ids))


def encoder_cache(model: StagedModel, folder: Path, limit: float = 1e9, **options: Any) -> FeatureCache:
    return FeatureCache(model, folder, ["encoder"], "data", limit, **options)


def fill(cache: FeatureCache, batch: Batch) -> dict[str, Tensor]:
    """The features of a batch, which the cache keeps from then on, up to its limit."""
    (found,) = [cache.features(each.images, cache.names) for each in cache.over(iter([batch]))]
    return found


def bytes_of(model: StagedModel) -> int:
    """What the features of one image take in bfloat16."""
    return model.features(random_images(model)[:1], ["encoder"])["encoder"].numel() * 2


def test_cached_features_need_no_forward_pass(
    model: StagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, batch = ["backbone", "encoder", "image"], batch_of(model, "a", "b", "c")
    computed = fill(FeatureCache(model, tmp_path, names, "data", 1e9), batch)
    again = FeatureCache(model, tmp_path, names, "data", 1e9)
    assert len(again) == 3
    monkeypatch.setattr(model, "features", None)  # nobody may call it
    swapped = Batch(batch.images[[1, 2]], ("b", "c"), batch.targets[:2])
    for each in again.over(iter([swapped])):
        read = again.features(each.images, names)
        assert read["image"] is each.images
        for name in ("backbone", "encoder"):
            assert torch.equal(read[name], computed[name][1:])
            assert torch.equal(read[name], read[name].bfloat16().float())
        part = again.features(each.images[1:], names)  # a micro-batch
        assert torch.equal(part["encoder"], computed["encoder"][2:])


def test_a_batch_that_is_cached_in_part_is_put_together_in_order(model: StagedModel, tmp_path: Path) -> None:
    batch, cache = batch_of(model, "a", "b", "c"), encoder_cache(model, tmp_path)
    fill(cache, Batch(batch.images[1:2].clone(), ("b",), batch.targets[:1]))
    expected = model.features(batch.images, ["encoder"])["encoder"]
    torch.testing.assert_close(
        fill(cache, batch)["encoder"], expected, atol=1e-5, rtol=2**-7
    )  # bfloat16, and batches of another size


def test_other_images_than_those_of_the_batch_are_computed_and_not_kept(model: StagedModel, tmp_path: Path) -> None:
    cache, images = encoder_cache(model, tmp_path), random_images(model)
    assert torch.equal(cache.features(images, ["encoder"])["encoder"], model.features(images, ["encoder"])["encoder"])
    for _ in cache.over(iter([batch_of(model, "a")])):
        cache.features(images, ["encoder"])
    assert len(cache) == 0


def test_a_cache_stays_below_its_limit(model: StagedModel, tmp_path: Path) -> None:
    cache = encoder_cache(model, tmp_path, 2.5 * bytes_of(model))
    fill(cache, batch_of(model, "a", "b", "c"))
    assert len(cache) == 2


def test_a_cache_that_cannot_be_written_is_told_once_and_training_goes_on(
    model: StagedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, batch = encoder_cache(model, tmp_path), batch_of(model, "a", "b", "c")
    cache.folder.touch()
    first, again = fill(cache, batch), fill(cache, batch)
    assert torch.equal(first["encoder"], again["encoder"])
    assert len(cache) == 0
    assert len(caplog.messages) == 1
    assert "training goes on" in caplog.messages[0]


@pytest.mark.parametrize("already", [0, 4])
def test_processes_share_what_room_there_is(model: StagedModel, tmp_path: Path, already: int) -> None:
    before = encoder_cache(model, tmp_path)
    if already:
        fill(before, batch_of(model, *(f"old {number}" for number in range(already))))
    # Beside nine images, the headers of three shards, and less than an image more for each.
    limit = before.bytes + 9 * bytes_of(model) + 600
    caches = [encoder_cache(model, tmp_path, limit, processes=3) for _ in range(3)]
    for rank, cache in enumerate(caches):
        for start in (0, 5):
            fill(cache, batch_of(model, *(f"{rank} {number}" for number in range(start, start + 5))))
    again = encoder_cache(model, tmp_path, limit)
    assert len(again) == already + 9
    assert again.bytes <= limit


def test_runs_that_write_at_once_keep_what_each_has_written(model: StagedModel, tmp_path: Path) -> None:
    one, other = encoder_cache(model, tmp_path), encoder_cache(model, tmp_path)
    epochs = [cache.over(iter([batch_of(model, *ids)])) for cache, ids in ((one, "ab"), (other, "cde"))]
    for cache, epoch in zip((one, other), epochs, strict=True):
        cache.features(next(epoch).images, cache.names)
    for epoch in epochs:
        assert next(epoch, None) is None  # the last shard is written
    again = encoder_cache(model, tmp_path)
    assert [identity in again for identity in "abcde"] == [True] * 5
    assert again.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    one.refresh()
    assert (len(one), one.bytes) == (5, again.bytes)


def test_an_index_that_is_being_written_is_left_alone(
    model: StagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def watched(path: Path, write: Callable[[Path], object]) -> Path:
        def write_and_open(temporary: Path) -> None:
            write(temporary)
            others.append(len(encoder_cache(model, tmp_path)))

        return whole(path, write_and_open)

    others, whole = list[int](), files.write_whole
    monkeypatch.setattr(files, "write_whole", watched)
    fill(encoder_cache(model, tmp_path), batch_of(model, "a", "b"))
    assert others == [0, 0]
    assert caplog.records == []
    assert len(encoder_cache(model, tmp_path)) == 2


@pytest.mark.parametrize("damaged", ["*.safetensors", "*.json"])
def test_a_damaged_shard_is_computed_again(
    damaged: str, model: StagedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(encoder_cache(model, tmp_path), batch_of(model, "a"))
    (path,) = tmp_path.rglob(damaged)
    flip(path)
    again = encoder_cache(model, tmp_path)
    assert "is damaged: its features are computed again" in caplog.text
    assert (len(again), again.bytes, list(tmp_path.rglob("*.safetensors"))) == (0, 0, [])
    fill(again, batch_of(model, "a"))
    assert len(encoder_cache(model, tmp_path)) == 1


def test_other_weights_data_stages_or_precisions_have_a_cache_of_their_own(model: StagedModel, tmp_path: Path) -> None:
    caches = [
        encoder_cache(model, tmp_path),
        encoder_cache(build_small("detr", seed=1), tmp_path),
        encoder_cache(model, tmp_path, precision="bf16"),
        FeatureCache(model, tmp_path, ["encoder"], "other data", 1e9),
        FeatureCache(model, tmp_path, ["backbone"], "data", 1e9),
    ]
    assert len({cache.folder for cache in caches}) == 5


def test_the_cache_of_a_run_is_that_of_its_precision_and_its_processes(model: StagedModel, tmp_path: Path) -> None:
    data = f"folder:{write_pictures(tmp_path / 'pictures')}"
    given = {"data": data, "feature_cache": tmp_path / "cache"}
    runs = [open_run(model, tmp_path / "run", precision=precision, **given) for precision in ("fp32", "bf16")]
    caches = [run.cache for run in runs]
    assert caches[0].folder != caches[1].folder
    options = TrainOptions(feature_cache=tmp_path / "cache", feature_cache_gb=8)
    shared = open_feature_cache(runs[0].task, options, "data", "fp32", 8)
    assert shared.room == 1e9


# ---- decoded images on disk


def test_cached_images_are_the_same_and_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = Pixels((48, 64))
    data = open_data(f"folder:{write_pictures(tmp_path / 'pictures')}", pixels).train
    kept = ImageCache(data, pixels, tmp_path / "kept", 1e9)
    plain = [batch.images for batch in loader(data, 4)]
    assert all(map(torch.equal, [batch.images for batch in loader(kept, 4)], plain))
    monkeypatch.setattr("backsight.data.source.read_image", None)  # nobody may call it
    assert all(map(torch.equal, [batch.images for batch in loader(kept, 4, workers=1)], plain))
    assert kept.ids == data.ids  # type: ignore[attr-defined]
    assert kept.fingerprint() == data.fingerprint()


def test_cached_images_stay_below_their_limit_and_damaged_ones_are_written_again(tmp_path: Path) -> None:
    pixels = Pixels((16, 16))
    data = open_data(f"folder:{write_pictures(tmp_path / 'pictures')}", pixels).train
    kept = ImageCache(data, pixels, tmp_path / "kept", 2.5 * 3 * 16 * 16)
    first = [kept[index] for index in range(len(kept))]
    files = sorted((tmp_path / "kept").rglob("*.safetensors"))
    assert len(files) == 2
    flip(files[0])
    assert read_sample(files[0]) is None
    again = kept[0]
    assert torch.equal(again.image, first[0].image)
    assert read_sample(files[0]) is not None


def test_a_sample_is_cached_whole(tmp_path: Path) -> None:
    boxes, masks, crowd = torch.tensor([[1.0, 2, 3, 4]]), torch.ones(1, 4, 4, dtype=torch.bool), torch.tensor([True])
    target = Target(boxes, torch.tensor([7]), masks, crowd, 3, {"hue": torch.tensor([0.5])})
    sample = Sample(torch.randint(0, 255, (3, 4, 4), dtype=torch.uint8), "a/b.jpg", target, torch.ones(4, 4).bool())
    (tmp_path / "one").write_bytes(pack_sample(sample))
    found: Any = read_sample(tmp_path / "one")
    assert found.id == "a/b.jpg"
    assert all(torch.equal(getattr(found, name), getattr(sample, name)) for name in ("image", "valid"))
    assert_rounding(vars(found.target), vars(target), 0.0)


# ---- compiled parts

Forward = Callable[..., Any]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of a few steps in which nothing is compiled."""
    return train(open_run(build_small("detr"), tmp_path_factory.mktemp("plain")))


def compile_by(monkeypatch: pytest.MonkeyPatch, compiler: Callable[[Forward], Forward]) -> None:
    def compile(forward: Forward, *, dynamic: bool) -> Forward:
        assert not dynamic
        return compiler(forward)

    monkeypatch.setattr(torch, "compile", compile)


def failing_at_once(forward: Forward) -> Forward:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no compiler here\nand more lines")

    return fail


def failing_later(forward: Forward) -> Forward:
    calls: list[int] = []

    def compiled(*args: Any, **kwargs: Any) -> Any:
        if calls:
            raise TorchDynamoException("another graph than the one that was tried")
        calls.append(1)
        return forward(*args, **kwargs)

    return compiled


@pytest.mark.parametrize(
    ("compiler", "messages"),
    [
        (failing_at_once, ["'forward model' runs as it is (no compiler here)", "'0/encoder'"]),
        (failing_later, ["runs as it is (another graph than the one that was tried)"]),
    ],
)
def test_a_part_that_cannot_be_compiled_runs_as_it_is_and_is_named(
    compiler: Callable[[Forward], Forward],
    messages: list[str],
    plain: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    compile_by(monkeypatch, compiler)
    with caplog.at_level(logging.WARNING):
        found = train(open_run(build_small("detr"), tmp_path, compile="on"))
    assert all(message in caplog.text for message in messages)
    assert_same(plain, found, 0)


def test_only_whole_batches_of_training_go_through_what_is_compiled(
    plain: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counting(forward: Forward) -> Forward:
        def compiled(*args: Any, **kwargs: Any) -> Any:
            calls.append(len(args[0] if args else next(iter(kwargs.values()))))
            return forward(*args, **kwargs)

        return compiled

    compile_by(monkeypatch, counting)
    run = open_run(build_small("detr"), tmp_path, compile="on")
    found = train(run)
    assert set(calls) == {5}
    assert_same(plain, found, 0)
    calls.clear()
    batch = next(iter(run.epoch(0, 0)))
    list(run.task.losses(batch.part(0, 3).images))
    run.task.train(False)
    with torch.no_grad():
        list(run.task.losses(batch.images))
    assert calls == []


class FailsBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError("out of memory")


def test_a_failed_attempt_leaves_no_gradients(
    model: StagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_by(
        monkeypatch, lambda forward: lambda features: forward(FailsBackwards.apply(features.clone().requires_grad_()))
    )
    run = open_run(model, tmp_path)
    assert "0/encoder" not in kernels.compile_task(run.task, "on", 5, "fp32")
    assert all(weight.grad is None for network in run.task.networks.values() for weight in network.parameters())


def test_auto_compiles_nothing_on_a_cpu(model: StagedModel, tmp_path: Path) -> None:
    assert kernels.compile_task(open_run(model, tmp_path).task, "auto", 5, "fp32") == []


@pytest.mark.slow
def test_compiled_parts_give_the_same_weights(tmp_path: Path) -> None:
    plain = train(open_run(build_small("vit"), tmp_path, inverse=()))
    found = train(open_run(build_small("vit"), tmp_path, inverse=(), compile="on"))
    assert_same(plain, found, 1e-3)


def test_the_configuration_is_plain(model: StagedModel, tmp_path: Path) -> None:
    run = open_run(model, tmp_path, feature_cache=tmp_path / "cache")
    json.dumps(run.config())

"""An image of another kind than the inverses were trained on is said to be so; a fresh one of the same kind is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import backsight as bs
from backsight.core import UserError
from backsight.data import Batch
from backsight.experiments.subject import Subject
from backsight.results import Measurement, Result
from backsight.training_range import FEWEST, FILE, Measured, Recorder, TrainingRange, unlike_in_words
from backsight.weak_inverses import no_better, still_falling, weak_inverses
from marks import quick

SHIPPED = {"zoo/detr-prior": "world:prior", "zoo/vit-prior": "world:prior:single"}


def photo_like(count: int, size: tuple[int, int] = (96, 96)) -> Tensor:
    """Noise whose spectrum falls as that of photos does, ``count 3 H W`` in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])[None]
    amplitude = 1 / (rows.square() + columns.square()).sqrt().clamp(min=1 / size[0])
    shared, own = (torch.randn(count, channels, *size, generator=generator) for channels in (1, 3))
    found = torch.fft.irfft2(torch.fft.rfft2(shared + 0.3 * own) * amplitude, s=size)
    found = found / found.std((1, 2, 3), keepdim=True)
    return (0.45 + 0.25 * found).clamp(0, 1)


@pytest.mark.parametrize("name", quick(SHIPPED, "zoo/vit-prior"))
def test_a_photo_like_image_is_unlike_drawn_scenes_and_a_fresh_scene_is_not(name: str) -> None:
    model, chains = bs.load_model(name), bs.ChainEnsemble.from_pretrained(name)
    known = TrainingRange.beside(chains)
    fresh = bs.open_data(SHIPPED[name], model.pixels).test.batch(range(1500, 1580)).images
    assert known.distances_of(chains, model.run(fresh)).unlike.double().mean() <= 0.05
    assert known.distances_of(chains, model.run(photo_like(10))).unlike.double().mean() >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"zoo/{each}" for each in ("detr-prior", "vit-prior", "deformable-detr-prior")])
def test_photos_are_unlike_drawn_scenes(name: str, test_data) -> None:
    model, chains = bs.load_model(name), bs.ChainEnsemble.from_pretrained(name)
    known = TrainingRange.beside(chains)
    photos = bs.load_images([test_data("coco-tiny") / "val2017"], model.pixels).images
    assert known.distances_of(chains, model.run(photos)).unlike.double().mean() >= 0.7


def test_one_seed_alone_is_judged_as_all_of_them() -> None:
    model = bs.load_model("zoo/vit-prior")
    chain = bs.InverseChain.from_pretrained("zoo/vit-prior")
    ensemble = bs.ChainEnsemble([chain])
    known = TrainingRange.beside(ensemble)
    assert known.distances_of(ensemble, model.run(photo_like(4))).unlike.all()


def measured(count: int, seed: int = 0, scale: float = 1.0) -> Measured:
    generator = torch.Generator().manual_seed(seed)
    features = {"a": scale * torch.randn(count, 6, generator=generator, dtype=torch.float64)}
    errors = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    return Measured(features, errors)


def test_nearly_all_images_of_the_same_kind_are_within() -> None:
    known = TrainingRange.of(measured(800))
    assert known.distances(measured(1000, seed=1)).unlike.double().mean() < 0.06
    assert known.distances(measured(200, seed=1, scale=8)).features.gt(1).double().mean() > 0.8


def test_of_a_few_images_no_range_is_kept() -> None:
    assert TrainingRange.of(measured(FEWEST - 1)) is None
    broken = replace(measured(100), errors=torch.full((100, 3), torch.nan))
    assert TrainingRange.of(broken) is None


def test_a_range_is_read_as_it_was_written_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    known = TrainingRange.of(measured(200))
    known.save(tmp_path)
    again = TrainingRange.load(tmp_path)
    some = measured(10, seed=2)
    assert torch.equal(again.distances(some).farthest, known.distances(some).farthest)
    (tmp_path / FILE).write_bytes(b"\x10\x00")
    with pytest.raises(UserError):
        TrainingRange.load(tmp_path)
    assert TrainingRange.load(tmp_path / "elsewhere") is None


def test_what_is_recorded_during_an_evaluation_is_what_is_measured_of_images() -> None:
    model, chains = bs.load_model("zoo/vit-prior"), bs.ChainEnsemble.from_pretrained("zoo/vit-prior")
    known = TrainingRange.beside(chains)
    images = bs.open_data("world:prior:single", model.pixels).test.batch(range(4)).images
    recorder = Recorder(model, chains)
    with torch.no_grad():
        for _ in recorder(Batch(images, tuple("abcd"), ()))[1]:
            pass
    (recorded,) = recorder.parts
    found = known.distances_of(chains, model.run(images))
    torch.testing.assert_close(known.distances(recorded).farthest, found.farthest, rtol=1e-3, atol=1e-3)


def test_of_padded_images_only_the_pictures_count() -> None:
    model, chains = bs.load_model("zoo/detr-prior"), bs.ChainEnsemble.from_pretrained("zoo/detr-prior")
    known = TrainingRange.beside(chains)
    images, valid = photo_like(2), torch.ones(2, 96, 96, dtype=torch.bool)
    valid[:, 64:] = False
    other = images.masked_fill(~valid[:, None], 0.3)
    with torch.no_grad():
        first, second = (known.distances_of(chains, model.run(each, valid=valid)) for each in (images, other))
    torch.testing.assert_close(first.farthest, second.farthest, rtol=1e-3, atol=1e-3)


def test_a_sentence_names_the_images_and_the_data() -> None:
    known = TrainingRange.of(measured(200))
    far = known.distances(measured(6, scale=50))
    text = unlike_in_words([f"folder/{index}.jpg" for index in range(6)], far, "world:prior")
    assert "0.jpg" in text
    assert "folder" not in text
    assert "world:prior" in text
    assert "2 more" in text
    assert unlike_in_words([], known.distances(measured(0)), "world:prior") == ""


def test_an_experiment_on_other_images_says_so() -> None:
    model = bs.load_model("zoo/vit-prior")
    scenes = bs.open_data("world:prior:single", model.pixels).test
    batch = Batch(photo_like(8), tuple(map(str, range(8))), ())
    subject = Subject(model, "zoo/vit-prior", scenes, num_images=4)
    assert subject.result("x", []).notes == []
    subject.batches = [batch]
    (note,) = subject.result("x", []).notes
    assert "world:prior:single" in note


# ---- inverses that say little


def error(stage: str, metric: str, value: float) -> Measurement:
    return Measurement({"model": "m", "stage": stage, "metric": metric}, torch.tensor([[value, value]]))


def test_an_inverse_no_better_than_a_mean_is_said_to_be_so() -> None:
    values = [("mean image", "mse", 0.1), ("a", "mse", 0.05), ("b", "mse", 0.097), ("c", "mse", 0.05)]
    values += [("a", "layer error", 0.3), ("b", "layer error", 0.3), ("c", "layer error", 0.96)]
    found = no_better(Result("evaluation", [{}], [error(*each) for each in values]))
    assert set(found) == {"b", "c"}


def test_a_loss_that_still_falls_at_the_end_is_said_to_be_so() -> None:
    steps = range(100, 1001, 100)
    falling, done = (lambda step: 1 - step / 2000), (lambda step: 0.5 + 0.01 / step)
    records = [{"step": step, "validation": {"0/a": falling(step), "0/b": done(step)}} for step in steps]
    assert set(still_falling(records)) == {"a"}
    assert still_falling(records[:1]) == {}
    assert still_falling([{"step": 10, "losses": {"0/a": 1.0}}]) == {}


def test_shipped_inverses_that_show_no_more_than_the_mean_image_are_named() -> None:
    assert set(weak_inverses(bs.ChainEnsemble.from_pretrained("zoo/detr-independent"))) == {
        "encoder",
        "decoder",
        "prediction",
        "prediction@onehot",
    }
    assert weak_inverses(bs.ChainEnsemble.from_pretrained("zoo/vit-prior")) == {}

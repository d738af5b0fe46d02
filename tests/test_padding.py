"""Pictures that keep their aspect: padded at the lower right, masked, and measured where they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional
from transformers import DetrImageProcessor

from backsight.chain import ChainEnsemble
from backsight.chain.model import open_forward_model
from backsight.core import IMAGE, Layout, Pixels, UserError, valid_sizes
from backsight.data import (
    Batch,
    Sample,
    Target,
    collate,
    fit,
    fit_target,
    load_images,
    loader,
    mean_of,
    open_data,
    sum_images,
)
from backsight.data.resize import valid_pixels
from backsight.engine import StagedModel
from backsight.evaluation import evaluate
from backsight.experiments import EXPERIMENTS, Subject, abstraction
from backsight.metrics import mse, on_valid, ssim
from backsight.models import MODELS, load_model
from backsight.report.reconstruct import reconstruct
from backsight.tasks import Modular, build_chains, component_loss, make_plans
from backsight.training import train
from backsight.verification import verify
from known_chains import QUICK
from marks import quick
from numerics import assert_rounding
from pictures import drawn, save_pictures
from small import build_small, random_images

HEEDING = [
    "detr",
    "table_transformer",
    "conditional_detr",
    "dab_detr",
    "deformable_detr",
    "grounding_dino",
    "lw_detr",
    "rf_detr",
]
IGNORING = ["rt_detr", "rt_detr_v2", "d_fine", "yolos", "vit", "swin", "vit-transformers"]
PAD = Pixels((64, 96), fit="pad")


def picture(rows: int, columns: int, seed: int = 0) -> Tensor:
    return functional.pil_to_tensor(drawn(rows, columns, seed))


def masks(model: StagedModel, *sizes: tuple[int, int]) -> Tensor:
    valid = torch.zeros(len(sizes), *model.pixels.size, dtype=torch.bool)
    for each, (rows, columns) in zip(valid, sizes, strict=True):
        each[:rows, :columns] = True
    return valid


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of pictures: wide, high, and of the model's own aspect."""
    for index, size in enumerate([(40, 120), (120, 60), (64, 96)]):
        save_pictures(tmp_path / "photos", [f"{index}{letter}.png" for letter in "abcd"], size)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def detr() -> StagedModel:
    return build_small("detr").fitting("pad")


@pytest.fixture(scope="module")
def chains(detr: StagedModel) -> ChainEnsemble:
    """Two seeds of inverses that are quickly drawn."""
    return ChainEnsemble([chain.eval() for chain in build_chains(detr, make_plans(detr, QUICK["detr"]), [0, 1])])


# ---- pictures


def library(images: list[Tensor], size: tuple[int, int]) -> Any:
    """What DETR's own processor makes of pictures that keep their aspect."""
    most = {"max_height": size[0], "max_width": size[1]}
    processor = DetrImageProcessor(size=most, pad_size={"height": size[0], "width": size[1]})
    return processor(images=images, return_tensors="pt")


# None that becomes a single column: without AVX2 torch gets those wrong in the processor's memory format.
@pytest.mark.parametrize("original", [(75, 100), (231, 73), (60, 300), (64, 96), (31, 47), (300, 10)])
def test_a_padded_picture_is_the_detr_processor_s(original: tuple[int, int]) -> None:
    theirs = library([picture(*original)], PAD.size)
    pixels, valid = PAD.normalise(fit(picture(*original), PAD) / 255), fit_valid(original)
    assert torch.equal(valid, theirs["pixel_mask"][0].bool())
    torch.testing.assert_close(pixels * valid, theirs["pixel_values"][0], atol=0.02, rtol=0)  # a grey level is 0.018
    assert (pixels * ~valid).abs().max() < 0.01, "the padding is as near to 0 as uint8 has it"


def fit_valid(original: tuple[int, int]) -> Tensor:
    valid = valid_pixels(original, PAD)
    return torch.ones(PAD.size, dtype=torch.bool) if valid is None else valid


@given(st.integers(1, 300), st.integers(1, 300), st.integers(3, 200), st.integers(3, 200))
def test_aspect_is_kept_and_boxes_and_masks_move_along(rows: int, columns: int, high: int, wide: int) -> None:
    pixels = Pixels((high, wide), fit="pad")
    image = torch.zeros(3, rows, columns, dtype=torch.uint8)
    whole = Target(
        torch.tensor([[0.0, 0, columns, rows]]),
        torch.tensor([1]),
        torch.ones(1, rows, columns, dtype=torch.bool),
        torch.tensor([False]),
    )
    moved = fit_target(whole, (rows, columns), pixels)
    assert fit(image, pixels).shape == (3, high, wide)
    ((seen_rows, seen_columns),) = valid_sizes(moved.masks)
    assert moved.boxes.tolist() == [pytest.approx([0, 0, seen_columns, seen_rows], abs=1e-3)]
    assert seen_rows == high or seen_columns == wide or abs(high - seen_rows) <= 1 or abs(wide - seen_columns) <= 1
    assert seen_rows <= high
    assert seen_columns <= wide
    if min(seen_rows, seen_columns) > 20:
        assert seen_columns / seen_rows == pytest.approx(columns / rows, rel=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_say_where_the_pictures_are(mixed: Path, workers: int) -> None:
    source = open_data(f"folder:{mixed}", PAD).train
    (batch,) = loader(source, 16, workers=workers)
    expected = {"0": (32, 96), "1": (64, 32), "2": (64, 96)}
    assert valid_sizes(batch.valid) == [expected[identity[0]] for identity in batch.ids]
    everything = collate([source[index] for index in range(len(source))])
    for part, start, stop in ((everything, 0, len(source)), (batch.part(1, 3), 1, 3)):
        assert torch.equal(part.valid, batch.valid[start:stop])


def test_nothing_is_said_where_nothing_is_padded(mixed: Path) -> None:
    assert load_images([mixed / "2a.png", mixed / "2b.png"], PAD).valid is None
    assert load_images([mixed / "0a.png", mixed / "2b.png"], PAD).valid is not None
    assert load_images([mixed / "0a.png"], Pixels((64, 96))).valid is None


# ---- passes


@pytest.mark.parametrize("name", IGNORING)
def test_models_without_a_mask_are_refused_in_one_line(name: str) -> None:
    model = build_small(name)
    with pytest.raises(UserError, match="takes no mask of padded pixels, or ignores it: use it with fit crop or"):
        model.fitting("pad")
    with pytest.raises(UserError, match="takes no mask"):
        model.run(random_images(model), valid=masks(model, (8, 8), (9, 9)))
    assert model.fitting("stretch").pixels.fit == "stretch"
    assert model.fitting(None).pixels.fit == "stretch"


def test_features_are_those_of_the_library_with_its_own_padding_and_mask(detr: StagedModel) -> None:
    images = [picture(75, 100), picture(231, 73)]
    theirs = library(images, detr.pixels.size)
    with torch.no_grad():
        output = detr.module(**theirs, output_hidden_states=True)
    batch = collate([sample(image) for image in images])
    trace = detr.run(batch.images, valid=batch.valid)
    for name, expected in (("encoder", output.encoder_last_hidden_state), ("decoder", output.last_hidden_state)):
        counted = detr.layout(name).under(batch.valid)
        found, known = (trace[name], expected) if counted is None else (trace[name][counted], expected[counted])
        torch.testing.assert_close(found, known, atol=0.02, rtol=0)  # as far as a grey level of resizing goes
    exact = detr.run(detr.pixels.restore(theirs["pixel_values"]), valid=theirs["pixel_mask"].bool())
    assert_rounding(exact["decoder"], output.last_hidden_state)
    assert_rounding(exact.output.pred_boxes, output.pred_boxes)


def sample(image: Tensor) -> Sample:
    size = (image.shape[1], image.shape[2])
    return Sample(fit(image, PAD), str(size), Target(), fit_valid(size))


@pytest.mark.parametrize("name", HEEDING)
def test_every_site_holds_with_a_mask(name: str) -> None:
    model = build_small(name).fitting("pad")
    assert [check.name for check in verify(model, batch_size=2) if not check.passed] == []


@pytest.mark.parametrize("name", HEEDING)
def test_a_mask_of_everything_changes_nothing_and_padding_is_not_seen(name: str) -> None:
    model = build_small(name)
    images = random_images(model)
    plain, everything = model.run(images), model.run(images, valid=torch.ones_like(images[:, 0], dtype=torch.bool))
    height, width = model.pixels.size
    valid = masks(model, (height, width // 2), (height // 2, width))
    painted = torch.where(valid[:, None], images, 0.5)
    one, other = model.run(images, valid=valid), model.run(painted, valid=valid)
    for each in model.names:
        assert_rounding(everything[each], plain[each])  # attention with a mask may be another kernel
        assert torch.equal(one[each], other[each])
        assert not torch.equal(one[each], plain[each])


@pytest.mark.parametrize("name", HEEDING)
def test_boxes_are_in_pixels_of_the_padded_image(name: str) -> None:
    model = build_small(name)
    images = random_images(model)
    trace = model.run(images, valid=masks(model, (48, 60), model.pixels.size))
    assert model.read is not None
    for index, size in enumerate([(48, 60), model.pixels.size]):
        own: Any = model.read(trace.output, size)  # as the library reads them, given the unpadded size
        found: Any = model.predict(trace)
        torch.testing.assert_close(found[index].boxes, own[index].boxes, atol=1e-3, rtol=1e-4)
        assert torch.equal(found[index].scores, own[index].scores)


def test_a_trained_detector_finds_the_same_boxes_in_a_padded_image() -> None:
    plain, wide = load_model("zoo/detr-prior"), load_model("zoo/detr-prior", size=(96, 160)).fitting("pad")
    scenes = open_data("world:prior", plain.pixels).test
    images = collate([scenes[index] for index in range(8)]).images
    padded, valid = torch.nn.functional.pad(images, (0, 64), value=0.3), masks(wide, *[(96, 96)] * 8)
    expected: Any = plain.predict(plain.run(images))
    found: Any = wide.predict(wide.run(padded, valid=valid))
    overlaps = []
    for ours, theirs in zip(found, expected, strict=True):
        sure = theirs.above(0.9).boxes
        overlaps += box_iou(sure, ours.above(0.5).boxes).amax(1).tolist() if len(sure) else []
    assert len(overlaps) >= 8
    assert sorted(overlaps)[len(overlaps) // 2] > 0.85


# ---- errors


def test_tokens_partly_under_a_picture_are_counted() -> None:
    layout = Layout(6 + 2 + 1, 4, ((2, 3), (1, 2)), prefix=1)
    valid = torch.zeros(1, 64, 96, dtype=torch.bool)
    valid[:, :33, :40] = True  # into the second row and the second column
    assert layout.under(valid).tolist() == [[True, True, True, False, True, True, False, True, False]]  # type: ignore
    assert Layout(9, 4).under(valid) is None
    assert torch.equal(Layout.of_image((64, 96)).under(valid).unflatten(1, (64, 96)), valid)  # type: ignore


def test_losses_are_over_what_is_counted() -> None:
    torch.manual_seed(0)
    pixels, valid = Pixels((8, 8)), torch.zeros(2, 8, 8, dtype=torch.bool)
    valid[0, :5], valid[1, :, :3] = True, True
    one, other = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    parts = [pixels.normalise(image).movedim(1, -1)[valid] for image in (one, other)]
    expected = (parts[0] - parts[1]).square().mean()
    found = component_loss(one, other, IMAGE, pixels, Layout.of_image((8, 8)).under(valid))
    torch.testing.assert_close(found, expected)
    tokens = torch.rand(2, 7, 5), torch.rand(2, 7, 5)
    counted = torch.rand(2, 7) > 0.5
    found = component_loss(*tokens, "encoder", pixels, counted)
    torch.testing.assert_close(found, (tokens[0] - tokens[1])[counted].square().mean())


def test_metrics_are_those_of_the_pictures_cut_out() -> None:
    torch.manual_seed(0)
    one, other = torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32)
    valid = torch.zeros(3, 32, 32, dtype=torch.bool)
    valid[0, :20], valid[1, :, :16], valid[2, :5] = True, True, True
    cut = [(one[:1, :, :20], other[:1, :, :20]), (one[1:2, ..., :16], other[1:2, ..., :16])]
    assert on_valid(ssim, None) is ssim
    found = on_valid(ssim, valid)(one, other)
    torch.testing.assert_close(found[:2], torch.cat([ssim(*pair) for pair in cut]))
    assert found[2].isnan(), "too thin for SSIM's window"
    torch.testing.assert_close(on_valid(mse, valid)(one, other), mse(one, other, valid))


def test_the_mean_image_is_over_pictures() -> None:
    images, valid = torch.rand(2, 3, 4, 6), torch.zeros(2, 4, 6, dtype=torch.bool)
    valid[0, :2], valid[1, :, :3] = True, True
    mean = mean_of(*sum_images(Batch(images, ("a", "b"), (Target(), Target()), valid)))
    torch.testing.assert_close(mean[:, :2, :3].float(), images[:, :, :2, :3].mean(0))
    torch.testing.assert_close(mean[:, 2:, :3].float(), images[1, :, 2:, :3])
    assert mean[:, 2:, 3:].std(dim=(1, 2)).max() < 1e-12, "where no picture is: the mean colour"


@pytest.mark.parametrize("name", ["detr", "deformable_detr"])
def test_no_error_depends_on_what_is_painted_in_the_padding(name: str) -> None:
    model = build_small(name).fitting("pad")
    chains = build_chains(model, make_plans(model), [0])
    images = random_images(model)
    valid = masks(model, (32, 96), (64, 40))
    painted = torch.where(valid[:, None], images, 0.9)
    ensemble, mean = ChainEnsemble([chain.eval() for chain in chains]), torch.full((3, 64, 96), 0.5)
    task = Modular(model, chains)
    for one, other in zip(task.losses(images, valid), task.losses(painted, valid), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
    found = [
        evaluate(model, ensemble, [Batch(each, ("a", "b"), (Target(), Target()), valid)], mean).to_json()
        for each in (images, painted)
    ]
    assert found[0] == found[1]


# ---- runs


def test_a_run_on_mixed_sizes_trains_reopens_and_is_shown_without_padding(mixed: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module: Any = MODELS["detr"].small()
    module.save_pretrained(tmp_path / "model")
    options: dict[str, Any] = {"seeds": 1, "workers": 0, "tracker": "none", "device": "cpu", "precision": "fp32"}
    options["inverse"] = QUICK["detr"]
    out = tmp_path / "run"
    train(str(tmp_path / "model"), data=f"folder:{mixed}", size="64x96", fit="pad", out=out, steps=2, **options)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model"]["pixels"]["fit"] == "pad"
    assert "pad" in (out / "card.md").read_text()
    model = open_forward_model(ChainEnsemble.from_pretrained(out))
    assert model.pixels.fit == "pad"
    results = reconstruct(out, [mixed / "0a.png", mixed / "1a.png"], tmp_path / "shown", device="cpu")
    sizes = {"0a.png": (32, 96), "1a.png": (64, 32)}
    for each in results.pictures:
        high, wide = sizes[Path(str(each.labels["image"])).name]
        assert each.image.shape[1] * wide == each.image.shape[2] * high, "detections are drawn on an enlarged one"


def subject_on(mixed: Path, detr: StagedModel, chains: ChainEnsemble, colour: float | None = None) -> Subject:
    """A subject with one batch of padded pictures, the padding painted in ``colour``."""
    subject = Subject(detr, chains, open_data(f"folder:{mixed}", detr.pixels).train)
    (batch,) = subject.batches
    if colour is not None:
        subject.batches = [replace(batch, images=torch.where(batch.valid[:, None], batch.images, colour))]
    return subject


def test_experiments_measure_pictures_and_refuse_where_they_cannot(
    mixed: Path, detr: StagedModel, chains: ChainEnsemble
) -> None:
    subject = subject_on(mixed, detr, chains)
    assert subject.padded
    batch = subject.batches[0]
    result = EXPERIMENTS["stage_error"].measure(subject)
    expected = torch.stack([mse(each, batch.images, batch.valid) for each in subject.reconstruct(batch, "backbone")])
    found = result.one(model=detr.name, stage="backbone", metric="mse").values
    torch.testing.assert_close(torch.as_tensor(found), expected)
    for name in ("trust", "token_noise", "layer_similarity"):
        assert "compares whole images, and these are padded" in EXPERIMENTS[name].fits(subject)
    assert EXPERIMENTS["reconstruct"].fits(subject) == ""


@pytest.mark.parametrize("name", ["stage_error", "intermediate_layers", "reconstruct"])
def test_no_experiment_looks_at_the_padding(name: str, mixed: Path, detr: StagedModel, chains: ChainEnsemble) -> None:
    subjects = [subject_on(mixed, detr, chains, colour) for colour in (0.2, 0.9)]
    found = [EXPERIMENTS[name].measure(subject).measurements for subject in subjects]
    for one, other in zip(*found, strict=True):
        assert one.labels == other.labels
        values = [torch.as_tensor(each.values) for each in (one, other)]
        torch.testing.assert_close(*values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "settings"),
    quick(
        [
            ("reconstruct", {"num_pictures": 12, "rows": ["mean", "spread", "seeds"]}),
            ("intermediate_layers", {"num_pictures": 12}),
            ("prototypes", {"num_pictures": 12}),
            ("color_perturbation", {"num_pictures": 12}),
            ("abstraction", {"num_shown": 12, "threshold": 1.0}),
        ],
        *("reconstruct", "abstraction"),
    ),
)
def test_pictures_of_experiments_are_cut_to_what_is_valid(
    name: str,
    settings: dict[str, Any],
    mixed: Path,
    detr: StagedModel,
    chains: ChainEnsemble,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = subject_on(mixed, detr, chains)
    (batch,) = subject.batches
    mask = torch.zeros(2, *detr.pixels.size, dtype=torch.bool)
    mask[0, 4:12, 4:12], mask[1, 4:12, 16:24] = True, True
    target = Target(
        torch.tensor([[4.0, 4, 12, 12], [16, 4, 24, 12]]), torch.tensor([0, 1]), mask, torch.zeros(2).bool()
    )
    subject.batches = [replace(batch, targets=(target,) * len(batch.ids))]
    monkeypatch.setattr(abstraction, "found", lambda *_: torch.tensor([True, False]))  # one is detected, one is not
    result = EXPERIMENTS[name].measure(subject, **settings)
    sizes = dict(zip(batch.ids, valid_sizes(batch.valid), strict=True))
    assert len(set(sizes.values())) == 3
    assert {"input", "original"} & {each.labels["stage"] for each in result.pictures}
    assert {"encoder", "decoder"} <= {each.labels["stage"] for each in result.pictures}
    for each in result.pictures:
        image = each.labels["image"]
        rows, columns = sizes[image if isinstance(image, str) else batch.ids[int(image)]]
        assert each.image.shape[1] * columns == each.image.shape[2] * rows, "detections are drawn on an enlarged one"
        assert each.labels.get("row") == "detected" or each.image.shape == (3, rows, columns)
    if name == "reconstruct":
        EXPERIMENTS[name].draw(result)


def test_cases_of_errors_are_shown_without_padding(mixed: Path, detr: StagedModel, chains: ChainEnsemble) -> None:
    whole, found = Target(torch.tensor([[0.0, 0, 30, 30]]), torch.tensor([1]), crowd=torch.zeros(1).bool()), []
    for colour in (0.2, 0.9):
        subject = subject_on(mixed, detr, chains, colour)
        (batch,) = subject.batches
        subject.batches = [replace(batch, targets=(whole,) * len(batch.ids))]
        found.append(EXPERIMENTS["detection_errors"].measure(subject, threshold=0.05).shown(shows="input"))
    assert found[0]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.image, other.image)

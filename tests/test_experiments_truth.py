import pytest
import torch

from backsight.core import UserError
from backsight.data.world import World
from backsight.data.world.scenes import LAWS
from backsight.experiments import Subject
from backsight.experiments.truth import FACTORS, edit, measure, read_features
from known_chains import Pictures, check_contract, untrained_subject
from small import build_small
from stand_in_chains import Painter, paint_grey, paint_input

SIZE = (64, 96)
WORLD = World("prior", SIZE, 2, 40)
FEW = {"num_scenes": 6, "num_training": 16}


def subject(paint, name: str = "detr", single: bool = False) -> Subject:
    model = build_small(name)
    world = World("prior", model.pixels.size, 2, 12, single=single)
    return Subject(model, Painter(model, paint(model)), world, batch_size=4)


@pytest.mark.parametrize("factor", FACTORS)
def test_an_edit_changes_its_region_and_nothing_else(factor):
    change = edit(WORLD, range(24), factor)
    moved = (change.before - change.after).abs().amax(1) > 6.5 / 255
    inside = change.region.flatten(1).any(1)
    assert inside.sum() > 10
    assert moved[change.region].float().mean() > 0.6
    outside = (moved & ~change.region)[inside].sum() / moved[inside].sum()
    allowed = {"hue": 0.2, "object": 0.5, "background": 0.1, "clutter": 0.0}[factor]  # soft edges, and a shadow
    assert outside <= allowed


def test_scenes_without_the_thing_have_an_empty_region():
    change = edit(WORLD, range(40), "object")
    empty = torch.tensor([not len(each.target.boxes) for each in WORLD.samples(range(40))])
    assert torch.equal(~change.region.flatten(1).any(1), empty)
    assert empty.any()


def test_given_hues_are_worn_before_the_edit():
    change = edit(WORLD, range(8), "hue", torch.zeros(8))
    there = change.region.flatten(1).any(1)
    colours = torch.stack([i[:, m].mean(1) for i, m in zip(change.before[there], change.region[there], strict=True)])
    assert (colours.argmax(1) == 0).all()  # red
    assert (colours[:, 1] - colours[:, 2]).abs().max() < 0.1


@pytest.mark.parametrize(("name", "paint", "expected"), [("detr", paint_input, 1.0), ("vit", paint_grey, 0.0)])
def test_a_perfect_inverse_keeps_every_change_and_a_constant_one_none(name, paint, expected):
    result = measure(subject(paint, name, single=name == "vit"), **FEW)
    for reader in ("inverse", "pixels"):
        for each in result.select(reader=reader):
            assert each.values.shape == (2, 6)
            assert each.known().numel()
            torch.testing.assert_close(each.known(), torch.full_like(each.known(), expected), atol=1e-4, rtol=0)


def test_a_probe_reads_what_the_features_hold_whatever_the_inverse_shows():
    result = measure(subject(paint_grey, "vit", single=True), num_scenes=16, num_training=80)
    probe, inverse = (result.one(factor="hue", stage="backbone", reader=each).mean() for each in ("probe", "inverse"))
    assert inverse == 0
    assert probe > 0.6


def test_features_are_read_where_the_region_is():
    model = build_small("vit")
    trace = model.run(torch.rand(2, 3, *model.pixels.size))
    h, w = model.layout("backbone").grid
    region = torch.zeros(2, *model.pixels.size, dtype=torch.bool)
    region[:, : model.pixels.size[0] // h, -model.pixels.size[1] // w :] = (
        True  # exactly the last token of the first row
    )
    read = read_features(model, trace, "backbone", region)
    prefix = model.layout("backbone").prefix
    expected = torch.cat([trace["backbone"][:, :prefix].flatten(1), trace["backbone"][:, prefix + w - 1]], 1)
    torch.testing.assert_close(read, expected)


def test_queries_are_read_by_the_box_that_covers_the_region():
    model = build_small("detr")
    trace = model.run(torch.rand(1, 3, *model.pixels.size))
    boxes = trace["prediction"][0, :, -4:]
    x, y, w, h = boxes[3].tolist()
    height, width = model.pixels.size
    region = torch.zeros(1, height, width, dtype=torch.bool)
    rows = slice(int(max(0.0, (y - h / 2)) * height), int((y + h / 2) * height) + 1)
    region[0, rows, int(max(0.0, (x - w / 2)) * width) : int((x + w / 2) * width) + 1] = True
    read = read_features(model, trace, "decoder", region)
    features = trace["decoder"]
    torch.testing.assert_close(read[:, features.shape[2] :], torch.cat([features.mean(1), features.amax(1)], 1))
    assert any(torch.equal(read[0, : features.shape[2]], query) for query in features[0])


def test_contract(tmp_path):
    result = check_contract("truth", [subject(paint_input), subject(paint_grey, "vit", single=True)], tmp_path, **FEW)
    assert result.values_of("law") == ["prior"]
    assert set(LAWS) > {"prior"}
    assert result.values_of("factor") == list(FACTORS)
    assert len(result.pictures) == 2 * 3 * (5 + 3)


def test_data_without_known_truth_is_refused():
    model = build_small("vit")
    with pytest.raises(UserError, match="give world:LAW"):
        measure(untrained_subject(model, data=Pictures(model.pixels.size)))

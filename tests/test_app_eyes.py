"""A model for many visitors: nothing computed twice, only what changed run again, everybody gets their own answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from backsight.app.changes import BRUSH, apply, places, region_of, settled
from backsight.app.eyes import Eyes, public_name
from backsight.app.observatory import Observatory
from backsight.app.state import Change
from backsight.core import UserError
from backsight.engine import RANDOM
from backsight.perturb import recolour
from numerics import assert_rounding
from small_observatory import small_eyes, small_observatory


@pytest.fixture(scope="module")
def observatory() -> Observatory:
    return small_observatory()


@pytest.fixture(scope="module")
def eyes(observatory: Observatory) -> Eyes:
    return observatory.choose("small detr")


def counting(eyes: Eyes, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the forward model ran and resumed, and the chains painted, from here on."""
    counts = dict.fromkeys(("run", "resume", "invert"), 0)

    def counted(owner: Any, name: str) -> None:
        act = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return act(*args, **options)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((eyes.model, "run"), (eyes.model, "resume"), (eyes.subject, "invert")):
        counted(owner, name)
    return counts


def test_what_was_seen_is_not_looked_at_again(observatory: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    eyes = small_eyes("detr")
    counts = counting(eyes, monkeypatch)
    source = observatory.source("world-prior/3", eyes)
    first = [eyes.reconstruct(eyes.see(source), name) for name in eyes.layers]
    assert counts == {"run": 1, "resume": 0, "invert": len(eyes.layers)}
    again = [eyes.reconstruct(eyes.see(source), name) for name in eyes.layers]
    assert counts == {"run": 1, "resume": 0, "invert": len(eyes.layers)}
    assert all(map(torch.equal, first, again))


def test_the_answer_is_that_of_the_model(observatory: Observatory, eyes: Eyes) -> None:
    source = observatory.source("world-prior/1", eyes)
    seen = eyes.see(source)
    trace = eyes.model.run(source.image[None])
    assert torch.equal(eyes.answer(seen).scores, eyes.model.predict(trace)[0].scores)
    assert torch.equal(eyes.reconstruct(seen, "encoder"), source.image.expand(2, -1, -1, -1))
    assert eyes.errors(seen, "encoder").tolist() == [0, 0]
    assert eyes.baseline(seen) == pytest.approx(float((source.image - eyes.subject.mean_image).square().mean()))


def test_after_an_edit_only_the_rest_runs(observatory: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    eyes = small_eyes("detr")
    seen = eyes.see(observatory.source("world-prior/0", eyes))
    before = {name: eyes.reconstruct(seen, name) for name in eyes.layers}
    counts = counting(eyes, monkeypatch)
    edited = eyes.edit(seen, "encoder", seen.trace["encoder"] + 1, "more")
    after = {name: eyes.reconstruct(edited, name) for name in eyes.layers}
    changed = eyes.layers[eyes.layers.index("encoder") :]
    assert counts == {"run": 0, "resume": 1, "invert": len(changed)}
    assert all(after[name] is before[name] for name in eyes.layers if name not in changed)
    expected = eyes.model.resume("encoder", seen.trace["encoder"] + 1, seen.trace)
    assert torch.equal(edited.trace["decoder"], expected["decoder"])
    assert not torch.equal(edited.trace["decoder"], seen.trace["decoder"])


def test_memory_is_bounded(observatory: Observatory) -> None:
    eyes = small_eyes("detr", cache=4 << 20)
    for index in range(12):
        seen = eyes.see(observatory.source(f"world-prior/{index}", eyes))
        for name in eyes.layers:
            eyes.reconstruct(seen, name)
        assert eyes._kept.size <= 4 << 20 or len(eyes._kept.values) == 1


def test_ten_visitors_at_once_get_their_own(observatory: Observatory) -> None:
    eyes = small_eyes("detr")

    def visit(index: int) -> torch.Tensor:
        state = Change(
            model=eyes.name, picture=f"world-prior/{index}", stage="backbone", noise="zero", tokens=str(index % 6)
        )
        busy = Observatory([(eyes, observatory.data["small detr"])], observatory.pictures)
        return apply(busy, state).after.trace["prediction"]

    with ThreadPoolExecutor(10) as visitors:
        found = list(visitors.map(visit, list(range(10)) * 2))
    for index in range(10):
        trace = eyes.model.run(observatory.source(f"world-prior/{index}", eyes).image[None])
        features = trace["backbone"].clone()
        features[:, index % 6] = 0
        expected = eyes.model.resume("backbone", features, trace)["prediction"]
        assert_rounding(found[index], expected)  # another thread, which may share its work among fewer
        assert_rounding(found[index + 10], expected)
        assert not torch.allclose(found[index - 1], expected, rtol=1e-3)


def test_nothing_changed_is_the_same_pass(observatory: Observatory) -> None:
    changed = apply(observatory, settled(observatory, Change()))
    assert changed.after is changed.before


@pytest.mark.parametrize("where", ["all", "brush", "known.0"])
def test_a_recoloured_picture_is_looked_at_anew(observatory: Observatory, eyes: Eyes, where: str) -> None:
    state = settled(observatory, Change(colour="red", where=where, brush="0-40", picture="world-prior/1"))
    source = observatory.source(state.picture, eyes)
    region = region_of(eyes, source, state)
    changed = apply(observatory, state)
    image = recolour(source.image[None], "red", region[None])
    assert region.any()
    assert torch.equal(changed.after.image, image[0])
    assert torch.equal(changed.after.trace["prediction"], eyes.model.run(image)["prediction"])


def test_the_brush_paints_its_cells(observatory: Observatory, eyes: Eyes) -> None:
    source = observatory.source("world-prior/0", eyes)
    region = region_of(eyes, source, Change(where="brush", brush=f"0-{BRUSH[1] - 1}"))
    assert torch.equal(region.all(1), region.any(1))
    assert int(region.any(1).sum()) == source.image.shape[-2] // BRUSH[0]


def test_known_objects_are_offered_with_their_outlines(observatory: Observatory, eyes: Eyes) -> None:
    source = observatory.source("world-prior/1", eyes)
    offered = dict(places(eyes, source))
    assert list(offered)[:2] == ["all", "brush"]
    known = [name for name in offered if name.startswith("known.")]
    assert len(known) == len(source.target.boxes)
    assert torch.equal(region_of(eyes, source, Change(where="known.1")), source.target.masks[1])


def test_swapped_tokens_are_those_of_the_other_picture(observatory: Observatory, eyes: Eyes) -> None:
    state = Change(
        "small detr", picture="world-prior/0", stage="encoder", noise="swap", tokens="2-3", other="world-prior/4"
    )
    changed = apply(observatory, state)
    other = eyes.see(observatory.source("world-prior/4", eyes))
    tokens = changed.after.trace["encoder"][0]
    assert torch.equal(tokens[2:4], other.trace["encoder"][0, 2:4])
    assert torch.equal(tokens[4:], changed.before.trace["encoder"][0, 4:])


def test_noise_follows_from_the_picture_so_that_a_link_shows_it_again(observatory: Observatory) -> None:
    state = settled(observatory, Change(tokens="0-1"))
    one, other = (apply(small, state).after.trace for small in (observatory, small_observatory()))
    assert_rounding(one["prediction"], other["prediction"])


def test_prefix_tokens_of_a_classifier_are_left_alone(observatory: Observatory) -> None:
    state = settled(observatory, Change(model="small vit", noise="zero", tokens="0"))
    changed = apply(observatory, state)
    before, after = (each.trace[state.stage][0] for each in (changed.before, changed.after))
    different = (before != after).any(1).nonzero().flatten().tolist()
    prefix = observatory.choose("small vit").model.layout(state.stage).prefix
    assert prefix > 0
    assert different == [prefix]


def test_what_does_not_fit_is_set_back(observatory: Observatory) -> None:
    state = settled(observatory, Change(model="small vit", stage="decoder", where="known.9", tokens="5000"))
    assert (state.where, state.tokens) == ("all", "")
    assert state.stage in observatory.choose("small vit").grids


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (Change(colour="mauve"), "no colour filter 'mauve': there are none, red"),
        (Change(where="known.99"), "there is no object 'known.99' in this picture"),
        (Change(where="detected.x"), "there is no object 'detected.x'"),
        (Change(stage="decoder", tokens="1"), "tokens at 'decoder' have no place in the picture"),
        (Change(stage="encoder", noise="salt", tokens="1"), "no noise 'salt': there are uniform, zero, swap"),
        (Change(stage="encoder", tokens="900"), "'900' is no cell"),
        (Change(model="gpt"), "no model 'gpt' is offered here: there are small detr, small vit"),
        (Change(picture="upload-0"), "no longer kept here"),
    ],
)
def test_wrong_wishes_are_told_in_one_line(observatory: Observatory, state: Change, says: str) -> None:
    with pytest.raises(UserError) as error:
        apply(observatory, state)
    assert says in str(error.value)


def test_names_do_not_tell_folders(tmp_path: Any) -> None:
    assert public_name(str(tmp_path / "mine")) == "mine"
    assert public_name("facebook/detr-resnet-50") == "facebook/detr-resnet-50"
    assert public_name("zoo/detr-prior") == "zoo/detr-prior"
    assert public_name("../secret/model.py:build") == "model.py:build"
    assert public_name(RANDOM) == RANDOM

"""A model for many visitors: nothing is computed twice, only what changed runs again, each gets their own answer."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from backsight.app.edits import BRUSH, apply, complete, region_of, regions
from backsight.app.model_view import ModelView
from backsight.app.state import Change
from backsight.app.workspace import Workspace
from backsight.core import UserError
from backsight.engine import RANDOM
from backsight.hub.card import public_name
from backsight.perturb import recolour
from numerics import assert_rounding
from small_app import small_view, small_workspace


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return small_workspace()


@pytest.fixture(scope="module")
def view(workspace: Workspace) -> ModelView:
    return workspace.model("small detr")


def counting(view: ModelView, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the forward model ran and resumed, and the chains painted, from here on."""
    counts = dict.fromkeys(("run", "resume", "invert"), 0)

    def counted(owner: Any, name: str) -> None:
        act = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return act(*args, **options)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((view.model, "run"), (view.model, "resume"), (view.subject, "invert")):
        counted(owner, name)
    return counts


def test_nothing_is_computed_twice(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    view = small_view("detr")
    counts = counting(view, monkeypatch)
    image = workspace.image("world-prior/3", view)
    first = [view.reconstruct(view.run(image), name) for name in view.layers]
    assert counts == {"run": 1, "resume": 0, "invert": len(view.layers)}
    again = [view.reconstruct(view.run(image), name) for name in view.layers]
    assert counts == {"run": 1, "resume": 0, "invert": len(view.layers)}
    assert all(map(torch.equal, first, again))


def test_the_prediction_is_the_models(workspace: Workspace, view: ModelView) -> None:
    image = workspace.image("world-prior/1", view)
    forward = view.run(image)
    trace = view.model.run(image.pixels[None])
    assert torch.equal(view.predict(forward).scores, view.model.predict(trace)[0].scores)
    assert torch.equal(view.reconstruct(forward, "encoder"), image.pixels.expand(2, -1, -1, -1))
    assert view.errors(forward, "encoder").tolist() == [0, 0]
    assert view.baseline(forward) == pytest.approx(float((image.pixels - view.subject.mean_image).square().mean()))


def test_after_an_edit_only_the_rest_runs(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    view = small_view("detr")
    forward = view.run(workspace.image("world-prior/0", view))
    before = {name: view.reconstruct(forward, name) for name in view.layers}
    counts = counting(view, monkeypatch)
    edited = view.resume(forward, "encoder", forward.trace["encoder"] + 1, "more")
    after = {name: view.reconstruct(edited, name) for name in view.layers}
    changed = view.layers[view.layers.index("encoder") :]
    assert counts == {"run": 0, "resume": 1, "invert": len(changed)}
    assert all(after[name] is before[name] for name in view.layers if name not in changed)
    expected = view.model.resume("encoder", forward.trace["encoder"] + 1, forward.trace)
    assert torch.equal(edited.trace["decoder"], expected["decoder"])
    assert not torch.equal(edited.trace["decoder"], forward.trace["decoder"])


def test_memory_is_bounded(workspace: Workspace) -> None:
    view = small_view("detr", cache=4 << 20)
    for index in range(12):
        forward = view.run(workspace.image(f"world-prior/{index}", view))
        for name in view.layers:
            view.reconstruct(forward, name)
        assert view._cache.size <= 4 << 20 or len(view._cache.values) == 1


def test_nothing_changed_is_the_same_pass(workspace: Workspace) -> None:
    changed = apply(workspace, complete(workspace, Change()))
    assert changed.after is changed.before


@pytest.mark.parametrize("where", ["all", "brush", "known.0"])
def test_a_recoloured_picture_runs_again(workspace: Workspace, view: ModelView, where: str) -> None:
    state = complete(workspace, Change(colour="red", where=where, brush="0-40", picture="world-prior/1"))
    image = workspace.image(state.picture, view)
    region = region_of(view, image, state)
    changed = apply(workspace, state)
    recoloured = recolour(image.pixels[None], "red", region[None])
    assert region.any()
    assert torch.equal(changed.after.image, recoloured[0])
    assert torch.equal(changed.after.trace["prediction"], view.model.run(recoloured)["prediction"])


def test_the_brush_paints_its_cells(workspace: Workspace, view: ModelView) -> None:
    image = workspace.image("world-prior/0", view)
    region = region_of(view, image, Change(where="brush", brush=f"0-{BRUSH[1] - 1}"))
    assert torch.equal(region.all(1), region.any(1))
    assert int(region.any(1).sum()) == image.pixels.shape[-2] // BRUSH[0]


def test_known_objects_are_offered_with_their_outlines(workspace: Workspace, view: ModelView) -> None:
    image = workspace.image("world-prior/1", view)
    offered = dict(regions(view, image))
    assert list(offered)[:2] == ["all", "brush"]
    known = [name for name in offered if name.startswith("known.")]
    assert len(known) == len(image.target.boxes)
    assert torch.equal(region_of(view, image, Change(where="known.1")), image.target.masks[1])


def test_swapped_tokens_are_those_of_the_other_picture(workspace: Workspace, view: ModelView) -> None:
    state = Change(
        "small detr", picture="world-prior/0", stage="encoder", noise="swap", tokens="2-3", other="world-prior/4"
    )
    changed = apply(workspace, state)
    other = view.run(workspace.image("world-prior/4", view))
    tokens = changed.after.trace["encoder"][0]
    assert torch.equal(tokens[2:4], other.trace["encoder"][0, 2:4])
    assert torch.equal(tokens[4:], changed.before.trace["encoder"][0, 4:])


def test_noise_follows_from_the_picture_so_that_a_link_shows_it_again(workspace: Workspace) -> None:
    state = complete(workspace, Change(tokens="0-1"))
    one, other = (apply(small, state).after.trace for small in (workspace, small_workspace()))
    assert_rounding(one["prediction"], other["prediction"])


def test_prefix_tokens_of_a_classifier_are_left_alone(workspace: Workspace) -> None:
    state = complete(workspace, Change(model="small vit", noise="zero", tokens="0"))
    changed = apply(workspace, state)
    before, after = (each.trace[state.stage][0] for each in (changed.before, changed.after))
    different = (before != after).any(1).nonzero().flatten().tolist()
    prefix = workspace.model("small vit").model.layout(state.stage).prefix
    assert prefix > 0
    assert different == [prefix]


def test_what_does_not_fit_the_model_is_set_back(workspace: Workspace) -> None:
    state = complete(workspace, Change(model="small vit", stage="decoder", where="known.9", tokens="5000"))
    assert (state.where, state.tokens) == ("all", "")
    assert state.stage in workspace.model("small vit").grids


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (Change(colour="mauve"), "'mauve': there are none, red"),
        (Change(where="known.99"), "no object 'known.99'"),
        (Change(where="detected.x"), "no object 'detected.x'"),
        (Change(stage="decoder", tokens="1"), "tokens at 'decoder'"),
        (Change(stage="encoder", noise="salt", tokens="1"), "'salt': there are uniform"),
        (Change(stage="encoder", tokens="900"), "'900' is no cell"),
        (Change(model="gpt"), "'gpt' is offered here: there are small detr, small vit"),
        (Change(picture="upload-0"), "no longer kept"),
    ],
)
def test_what_is_not_there_is_refused(workspace: Workspace, state: Change, reason: str) -> None:
    with pytest.raises(UserError, match=re.escape(reason)):
        apply(workspace, state)


def test_names_reveal_no_folders(tmp_path: Any) -> None:
    assert public_name(str(tmp_path / "mine")) == "mine"
    assert public_name("facebook/detr-resnet-50") == "facebook/detr-resnet-50"
    assert public_name("zoo/detr-prior") == "zoo/detr-prior"
    assert public_name("../secret/model.py:build") == "model.py:build"
    assert public_name(RANDOM) == RANDOM

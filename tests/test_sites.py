"""Sites in awkward places: inputs, pyramids, modules that edit in place, run twice, or never run at all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from backsight.core import Pixels, Site, Spec, Stage, UserError
from backsight.engine import StagedModel
from numerics import assert_rounding
from small import noisy, random_images, stage_toy

MAP = "b d h w"


class Head(nn.Module):
    """Reads its second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, scale: float, tokens: Tensor) -> Tensor:
        return scale * self.linear(tokens)


class Caller(nn.Module):
    """Calls its head by keyword or by position."""

    def __init__(self, keyword: bool) -> None:
        super().__init__()
        self.patches, self.head, self.keyword = nn.Conv2d(3, 4, 4, 4), Head(), keyword

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT
        return self.head(scale=3.0, tokens=tokens) if self.keyword else self.head(3.0, tokens)


@pytest.mark.parametrize("keyword", [True, False])
@pytest.mark.parametrize("field", ["tokens", 1])
def test_an_input_is_found_however_the_module_is_called(keyword: bool, field: str | int) -> None:
    module = Caller(keyword)
    model = stage_toy(module, {"tokens": Site("head", "input", field)})
    trace = model.run(random_images(model))
    assert torch.equal(trace["tokens"], module.patches(model.pixels.normalise(trace.images)).flatten(2).mT)
    assert model.layout("tokens").grids == ((2, 2),)
    edit = noisy(trace["tokens"])
    assert_rounding(model.resume("tokens", edit, trace).output, module.head(3.0, edit))


def test_input_and_output_of_one_module_are_two_places() -> None:
    model = stage_toy(Caller(True), {"before": Site("head", "input", "tokens"), "after": Site("head")})
    trace = model.run(random_images(model))
    edited = model.resume("after", noisy(trace["after"]), trace)
    assert torch.equal(edited["before"], trace["before"])
    again = model.resume("before", noisy(trace["before"]), edited)
    assert torch.equal(again.output, model.resume("before", noisy(trace["before"]), trace).output)


# ---- a pyramid


class Pyramid(nn.Module):
    """Two maps in a list or a tuple, which the head changes in place, as RT-DETR's does."""

    def __init__(self, container: type) -> None:
        super().__init__()
        self.backbone, self.head, self.end = Levels(container), Sum(), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.head(self.backbone(images)))


class Levels(nn.Module):
    def __init__(self, container: type) -> None:
        super().__init__()
        self.fine, self.coarse, self.container = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(3, 4, 4, 4), container

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        return self.container([self.fine(images), self.coarse(images)])


class Sum(nn.Module):
    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        if isinstance(levels, list):
            levels[0] = levels[0] * 2
        for level in levels:
            level += 1
        return levels[0].mean((2, 3)) + levels[1].amax((2, 3))


@pytest.mark.parametrize("container", [list, tuple])
@pytest.mark.parametrize("site", [Site("backbone", pattern=MAP), Site("head", "input", pattern=MAP)])
def test_a_pyramid_is_one_row_of_tokens(container: type, site: Site) -> None:
    module = Pyramid(container)
    model = stage_toy(module, {"levels": site}, levels=2)
    trace = model.run(random_images(model))
    fine, coarse = module.backbone(model.pixels.normalise(trace.images))
    assert torch.equal(trace["levels"], torch.cat([fine.flatten(2), coarse.flatten(2)], 2).mT)
    assert model.layout("levels").grids == ((4, 4), (2, 2))
    assert torch.equal(model.resume("levels", trace["levels"], trace).output, trace.output)
    edit = noisy(trace["levels"])
    maps = container([edit[:, :16].mT.reshape(2, 4, 4, 4), edit[:, 16:].mT.reshape(2, 4, 2, 2)])
    expected = module.end(module.head(copy.deepcopy(maps)))
    assert_rounding(model.resume("levels", edit, trace).output, expected)


# ---- a cut through several modules, and what is read past a site


class Ladder(nn.Module):
    """Two maps from one module; of the next, the coarse one is changed first, the fine one read after that."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom, self.inner, self.end = Levels(list), Rungs(), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.inner(self.bottom(images)))


class Rungs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.coarse, self.fine = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        coarse = self.coarse(levels[1])
        return self.fine(levels[0]).mean((2, 3)) + coarse.amax((2, 3))


@pytest.fixture
def ladder() -> StagedModel:
    """``maps`` is what enters the rungs, ``cut`` the fine map and the changed coarse one, ``coarse`` that one alone."""
    sites = {
        "maps": (Site("inner", "input", pattern=MAP),),
        "cut": (Site("bottom.fine", pattern=MAP), Site("inner.coarse", pattern=MAP)),
        "coarse": (Site("inner.coarse", pattern=MAP),),
    }
    stages = tuple(Stage(name, each, levels=len(each)) for name, each in sites.items())
    return StagedModel(Ladder(), Spec("toy", "features", stages), Pixels((8, 8)), name="toy")


def test_sites_of_several_modules_are_one_row_of_tokens(ladder: StagedModel) -> None:
    module: Any = ladder.module
    trace = ladder.run(random_images(ladder))
    fine, coarse = module.bottom(ladder.pixels.normalise(trace.images))
    assert torch.equal(trace["cut"], torch.cat([fine.flatten(2), module.inner.coarse(coarse).flatten(2)], 2).mT)
    assert ladder.layout("cut").grids == ladder.layout("maps").grids == ((4, 4), (2, 2))
    assert torch.equal(ladder.resume("cut", trace["cut"], trace).output, trace.output)


def test_an_edit_of_a_cut_reaches_every_module_of_it(ladder: StagedModel) -> None:
    """The fine map's own module is inside one that had finished when the coarse map was changed."""
    module: Any = ladder.module
    trace = ladder.run(random_images(ladder))
    edit = noisy(trace["cut"])
    fine, coarse = edit[:, :16].mT.reshape(2, 4, 4, 4), edit[:, 16:].mT.reshape(2, 4, 2, 2)
    expected = module.end(module.inner.fine(fine).mean((2, 3)) + coarse.amax((2, 3)))
    edited = ladder.resume("cut", edit, trace)
    assert_rounding(edited.output, expected)
    assert torch.equal(edited["coarse"], edit[:, 16:])
    assert torch.equal(ladder.resume("cut", edited["cut"], edited).output, edited.output)


def test_what_was_edited_at_an_input_is_read_past_a_later_site_too(ladder: StagedModel) -> None:
    trace = ladder.run(random_images(ladder))
    once = ladder.resume("maps", noisy(trace["maps"]), trace)
    assert torch.equal(ladder.resume("coarse", once["coarse"], once).output, once.output)
    assert not torch.equal(ladder.resume("coarse", once["coarse"], trace).output, once.output)


# ---- edits in place


class InPlace(nn.Module):
    """Everything after a site is changed in place by whoever reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.relu = nn.Conv2d(3, 4, 4, 4), nn.ReLU(inplace=True)
        self.middle, self.end = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        middle = self.middle(self.relu(self.patches(images)))
        middle += 1
        output = self.end(middle)
        output *= 2
        return output


@pytest.fixture
def in_place() -> StagedModel:
    sites = {"patches": Site("patches", pattern=MAP), "middle": Site("middle", pattern=MAP)}
    return stage_toy(InPlace(), sites)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["patches", "middle"])
def test_changes_in_place_reach_no_trace_and_no_caller(in_place: StagedModel, name: str) -> None:
    trace = in_place.run(random_images(in_place))
    kept = {each: value.clone() for each, value in trace.features.items()}
    assert torch.equal(in_place.resume(name, trace[name], trace).output, trace.output)
    edit = noisy(trace[name])
    given = edit.clone()
    edited = in_place.resume(name, edit, trace)
    assert torch.equal(edit, given)
    assert torch.equal(edited[name], given)
    assert torch.equal(in_place.resume(name, edited[name], edited).output, edited.output)
    assert all(torch.equal(trace[each], value) for each, value in kept.items())


def test_gradients_pass_changes_in_place(in_place: StagedModel) -> None:
    module: Any = in_place.module
    trace = in_place.run(random_images(in_place))
    edit = noisy(trace["patches"]).requires_grad_()
    (slope,) = torch.autograd.grad(in_place.resume("patches", edit, trace).output.square().sum(), edit)
    plain = edit.detach().mT.reshape(2, 4, 2, 2).requires_grad_()
    output = 2 * module.end(1 + module.middle(plain.relu()))
    (expected,) = torch.autograd.grad(output.square().sum(), plain)
    assert_rounding(slope, expected.flatten(2).mT)


class Skip(nn.Module):
    """What its first module answers is changed in place, and then read by the last one too, past the site."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.middle, self.end = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images)
        patches *= 3
        return self.end(patches + self.middle(patches))


def test_what_a_replay_answers_is_as_it_was_said() -> None:
    model = stage_toy(Skip(), {"middle": Site("middle", pattern=MAP)})
    trace = model.run(random_images(model))
    for _ in range(3):
        assert torch.equal(model.resume("middle", trace["middle"], trace).output, trace.output)


# ---- modules that run twice, sites that are not there


class Shared(nn.Module):
    """One block, applied twice, with a norm between; ``unused`` never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block, self.norm = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.end, self.unused = nn.Conv2d(4, 2, 1), nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.block(self.norm(self.block(self.patches(images)))).sin())


def test_a_site_that_runs_twice_is_refused() -> None:
    model = stage_toy(Shared(), {"block": Site("block", pattern=MAP)})
    with pytest.raises(UserError, match=r"the site of 'block' \('block'\) runs more than once"):
        model.run(random_images(model))


def test_a_module_that_runs_twice_is_replayed_call_by_call() -> None:
    module = Shared()
    model = stage_toy(module, {"norm": Site("norm", pattern=MAP)})
    trace = model.run(random_images(model))
    assert torch.equal(model.resume("norm", trace["norm"], trace).output, trace.output)
    edit = noisy(trace["norm"])
    expected = module.end(module.block(edit.mT.reshape(2, 4, 2, 2)).sin())
    assert_rounding(model.resume("norm", edit, trace).output, expected)


def test_a_site_that_never_runs_is_told() -> None:
    model = stage_toy(Shared(), {"unused": Site("unused", pattern=MAP)})
    with pytest.raises(UserError, match="never comes by 'unused'"):
        model.layout("unused")
    with pytest.raises(UserError, match="nothing at 'unused'"):
        model.features(random_images(model), ["unused"])


def test_a_site_that_the_model_does_not_have_is_told() -> None:
    with pytest.raises(UserError, match=r"no submodule 'nose': its children are patches, block, norm"):
        stage_toy(Shared(), {"nose": Site("nose")})


@pytest.mark.parametrize("gridded", [True, False])
def test_tokens_that_no_grid_holds_must_be_declared(gridded: bool) -> None:
    class Seven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Linear(3, 7 * 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.queries(images.mean((2, 3))).unflatten(1, (7, 2))

    model = stage_toy(Seven(), {"queries": Site("", pattern="b n d")}, gridded=gridded)
    if not gridded:
        assert model.layout("queries").grids == ()
        return
    with pytest.raises(UserError, match="cannot place the 7 tokens at 'queries' on a grid"):
        model.layout("queries")


# ---- two sites, one stage


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.heads, self.end = nn.Conv2d(3, 4, 4, 4), TwoHeads(), nn.Linear(6, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits, boxes = self.heads(self.patches(images).flatten(2).mT)
        return self.end(torch.cat([boxes, logits], -1))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits, self.boxes = nn.Linear(4, 2), nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits(tokens), self.boxes(tokens)


def test_the_fields_of_one_output_are_edited_together() -> None:
    module = Two()
    sites = (Site("heads", field=0), Site("heads", field=1))
    model = StagedModel(module, Spec("toy", "features", (Stage("heads", sites),)), Pixels((8, 8)), name="toy")
    trace = model.run(random_images(model))
    edit = noisy(trace["heads"])
    logits, boxes = edit.split([2, 4], -1)
    assert torch.equal(model.resume("heads", edit, trace).output, module.end(torch.cat([boxes, logits], -1)))


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_model_of_nothing_but_features_predicts_nothing(side: Literal["input", "output"]) -> None:
    model = stage_toy(Caller(True), {"tokens": Site("head", side, "tokens" if side == "input" else None)})
    with pytest.raises(UserError, match="toy predicts nothing"):
        model.predict(model.run(random_images(model)))

"""Models that call their parts, arrange their features and answer in ways that no family here does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backsight.core import Pixels, UserError
from backsight.engine import StagedModel
from backsight.models import stage
from backsight.models.custom import unwrapped
from backsight.verification import verify

MAP = {"path": "patch", "pattern": "b d h w"}


class Small(nn.Module):
    """Patches of 8 x 8 pixels in 8 channels, a block, a head of 4 classes; ``how`` makes the answer of them."""

    def __init__(self, how: Any = None, **more: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.block, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.how = how or (lambda self, tokens: self.head(self.block(tokens)).mean(1))
        for name, module in more.items():
            self.add_module(name, module)

    def tokens(self, images: Tensor) -> Tensor:
        return self.patch(images).flatten(2).mT

    def forward(self, images: Tensor) -> Any:
        return self.how(self, self.tokens(images))


def staged(module: nn.Module, *stages: dict[str, Any], task: str = "classify", **more: Any) -> StagedModel:
    every = [{"name": f"s{index}", "inverse": "residual", **each} for index, each in enumerate(stages)]
    return stage(module, {"family": "toy", "task": task, "pixels": {"size": [32, 32]}, "stages": every, **more})


def images(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def passes(model: StagedModel) -> list[bool]:
    return [check.passed for check in verify(model)]


# ---- calls


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.norm(self.inner(tokens))


def test_a_module_used_in_an_answered_one_and_again_outside_goes_on_with_its_next_call() -> None:
    def how(self: Any, tokens: Tensor) -> Tensor:
        tokens = self.tower(tokens)
        return self.head(self.tower.norm(self.block(tokens))).mean(1)

    model = staged(Small(how, tower=Tower()), {"site": "tower.inner"}, {"site": "block"})
    trace = model.run(images())
    again = model.resume("s1", trace["s1"], trace)
    assert torch.equal(again.output, trace.output)
    first = model.resume("s0", trace["s0"], again)
    assert torch.equal(first.output, trace.output)
    assert passes(model) == [True, True]


def four_times(self: Any, tokens: Tensor) -> Tensor:
    for _ in range(4):
        tokens = tokens + self.block(tokens).relu()
    return self.head(tokens).mean(1)


def test_a_call_of_a_block_that_runs_several_times_is_named_by_its_number() -> None:
    module = Small(four_times)
    with pytest.raises(UserError, match="4 times"):
        staged(module, {"site": "block"})
    with pytest.raises(UserError, match="no call 4"):
        staged(module, {"site": {"path": "block", "call": 4}})
    model = staged(module, *({"site": {"path": "block", "call": call}} for call in range(4)))
    pixels, trace = model.pixels.normalise(images()), model.run(images())
    tokens = module.tokens(pixels)
    for name in model.stages:
        torch.testing.assert_close(trace[name], module.block(tokens))
        tokens = tokens + module.block(tokens).relu()
    assert passes(model) == [True] * 4
    edited = torch.zeros_like(trace["s2"])
    trace = model.resume("s2", edited, trace)
    rest = trace["s0"].relu() + trace["s1"].relu() + module.tokens(pixels)
    torch.testing.assert_close(trace["s3"], module.block(rest))
    torch.testing.assert_close(model.resume("s3", trace["s3"], trace).output, trace.output)


def test_a_forward_that_draws_random_numbers_is_refused() -> None:
    def how(self: Any, tokens: Tensor) -> Tensor:
        return self.head(self.block(tokens[:, torch.rand(16).argsort()[:8]])).mean(1)

    with pytest.raises(UserError, match="random"):
        passes(staged(Small(how), {"site": {"path": "block", "side": "input"}, "gridded": False}))


def test_tokens_that_stand_in_another_order_are_found() -> None:
    def how(self: Any, tokens: Tensor) -> Tensor:
        windows = tokens.unflatten(1, (2, 2, 2, 2)).permute(0, 1, 3, 2, 4, 5).flatten(1, 4)
        return self.head(self.block(windows)).mean(1)

    model = staged(Small(how), {"site": MAP}, {"site": {"path": "block", "side": "input"}})
    assert [check.row_by_row for check in verify(model)] == [True, False]


def test_an_output_that_is_the_same_for_every_image_is_no_fault_of_the_sites() -> None:
    with pytest.raises(UserError, match="same for every image"):
        passes(staged(Small(lambda self, tokens: self.head(tokens).mean(1) * 0), {"site": MAP}))


# ---- what stands at a site


class InTuple(nn.Module):
    def __init__(self, container: Any) -> None:
        super().__init__()
        self.narrow, self.wide, self.container = nn.Conv2d(8, 3, 2, 2), nn.Conv2d(8, 8, 1), container

    def forward(self, maps: Tensor) -> Any:
        return self.container((self.wide(maps), self.narrow(maps)))


@pytest.mark.parametrize("container", [tuple, list, lambda pair: {"fine": pair[0], "coarse": pair[1]}])
def test_a_pyramid_has_maps_of_any_width_in_any_container(container: Any) -> None:
    def how(self: Any, tokens: Tensor) -> Tensor:
        found = self.neck(tokens.mT.unflatten(2, (4, 4)))
        fine, coarse = found.values() if isinstance(found, dict) else found
        return self.head(fine.flatten(2).mean(2)) + coarse.flatten(1).sum(1, keepdim=True)

    model = staged(Small(how, neck=InTuple(container)), {"site": {"path": "neck", "pattern": "b d h w"}, "levels": 2})
    features = model.run(images())["s0"]
    assert features.shape == (2, 16 + 4, 8)
    assert model.layout("s0").grids == ((4, 4), (2, 2))
    assert not features[:, 16:, 3:].any()
    assert passes(model) == [True]


def test_the_only_tensor_of_a_tuple_is_taken() -> None:
    class Alone(nn.Linear):
        def forward(self, input: Tensor) -> Any:
            return (super().forward(input),)

    model = staged(
        Small(lambda self, tokens: self.head(self.alone(tokens)[0]).mean(1), alone=Alone(8, 8)), {"site": "alone"}
    )
    assert passes(model) == [True]


def test_a_pooled_vector_is_one_token_on_no_grid() -> None:
    def how(self: Any, tokens: Tensor) -> Tensor:
        return self.head(self.block(tokens.mean(1)))

    model = staged(Small(how), {"site": MAP}, {"site": {"path": "block", "pattern": "b d"}})
    assert model.layout("s1").grids == ()
    assert model.run(images())["s1"].shape == (2, 1, 8)
    assert passes(model) == [True, True]


def test_a_stage_of_width_three_is_not_the_image() -> None:
    module = Small(lambda self, tokens: self.head(self.block(tokens)).mean(1), thin=nn.Conv2d(3, 3, 2, 2))
    module.patch = nn.Conv2d(3, 8, 4, 4)
    module.tokens = lambda images: module.patch(module.thin(images)).flatten(2).mT
    model = staged(module, {"site": {"path": "thin", "pattern": "b d h w"}}, {"site": MAP})
    assert model.layout("s0").width == 3
    assert not model.layout("s0").image
    assert model.layout("image").image


# ---- what goes in and comes out


@dataclass(frozen=True)
class Answer:
    logits: Tensor
    inner: dict[str, Tensor]


@pytest.mark.parametrize("field", ["logits", "inner.logits"])
def test_answers_in_dataclasses_and_within_others_are_read(field: str) -> None:
    def how(self: Any, tokens: Tensor) -> Answer:
        logits = self.head(self.block(tokens)).mean(1)
        return Answer(logits, {"logits": logits})

    model = staged(Small(how), {"site": MAP}, prediction=field)
    assert model.predict(model.run(images())).top().shape == (2,)
    assert passes(model) == [True]


def test_one_class_that_softmax_would_take_for_none_is_refused() -> None:
    def how(self: Any, tokens: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(tokens)[..., :1], "boxes": self.head(tokens).sigmoid()}

    answer = {"logits": "logits", "boxes": "boxes"}
    with pytest.raises(UserError, match="scores: sigmoid"):
        staged(Small(how), {"site": MAP}, task="detect", prediction=answer)
    model = staged(Small(how), {"site": MAP}, task="detect", prediction={**answer, "scores": "sigmoid"})
    assert model.predict(model.run(images()))[0].scores.shape == (16,)


class ImagesSecond(Small):
    def forward(self, text: Any = None, pixel_values: Any = None, scale: Any = None) -> Tensor:  # type: ignore[override]
        assert text.shape == (len(pixel_values), 3)
        return super().forward(pixel_values) + text.sum(1, keepdim=True) * 0.1


def test_images_go_to_their_own_argument_and_tensors_beside_them_are_expanded() -> None:
    arguments = {"text": {"tensor": [[1, 2, 3]]}}
    for more in ({}, {"image_argument": "pixel_values"}):
        model = staged(ImagesSecond(), {"site": MAP}, arguments=arguments, **more)
        assert passes(model) == [True]
    assert model.reopen["spec"]["arguments"] == arguments


def test_a_model_in_half_precision_takes_and_gives_single() -> None:
    model = staged(Small().half(), {"site": MAP}, {"site": "block"})
    trace = model.run(images())
    assert {trace[name].dtype for name in trace} == {torch.float32}
    assert trace.output.dtype == torch.float16
    assert passes(model) == [True, True]


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda module: torch.compile(module, backend="eager")])
def test_a_wrapped_module_is_staged_as_it_is_inside(wrap: Any) -> None:
    module = Small()
    assert unwrapped(wrap(module)) is module
    assert staged(wrap(module), {"site": MAP}).module is module


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_weights_have_a_digest() -> None:
    def digest(scale: float) -> str:
        small = Small()
        weights = torch.quantize_per_tensor(small.head.weight.detach(), scale, 0, torch.qint8)
        small.register_buffer("quantised", weights)
        return staged(small, {"site": MAP}).digest()

    assert digest(0.01) != digest(0.1)


def test_sites_are_proved_where_gradients_are_off() -> None:
    model = staged(Small(), {"site": MAP})
    with torch.no_grad():
        assert passes(model) == [True]
    assert Pixels((32, 32)) == model.pixels

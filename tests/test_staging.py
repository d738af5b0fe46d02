"""The staging engine: what every family must do, whatever its library's forward looks like."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from backsight.arrange import call_with
from backsight.core import IMAGE, UserError
from backsight.engine import StagedModel, Trace
from backsight.models import MODELS
from backsight.verification import tensors
from marks import quick
from numerics import assert_rounding
from small import build_small, noisy, random_images


def same(one: Any, other: Any) -> bool:
    """Two outputs of a library are equal, bit for bit."""
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


def before(trace: Trace, name: str) -> list[str]:
    """The names whose features stood before those of ``name``."""
    return [each for each, call in trace.raw.items() if call.order < trace.raw[name].order]


def patched(model: StagedModel) -> list[str]:
    """Submodules with a forward that is not their own, or with a hook of ours (transformers has some that stay)."""
    return [
        path
        for path, module in model.module.named_modules()
        if "forward" in module.__dict__
        or any(
            hook.__module__.startswith("backsight")
            for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        )
    ]


# ---- run and features


def test_features_are_those_of_a_run(model: StagedModel) -> None:
    images = random_images(model)
    trace = model.run(images)
    assert list(trace.features) == sorted(trace.features, key=lambda name: trace.raw[name].order)
    assert set(trace.features) == set(model.names)
    found = model.features(images, [*model.names[::-1], IMAGE])
    assert list(found) == [*model.names[::-1], IMAGE]
    assert all(torch.equal(found[name], trace[name]) for name in found)
    assert torch.equal(trace[IMAGE], images)


def test_a_trace_is_looked_into_by_names(model: StagedModel) -> None:
    trace = model.run(random_images(model), until=model.stages[0])
    assert list(trace) == list(trace.keys()) == list(trace.features)
    assert len(trace) == len(trace.features)
    assert model.stages[0] in trace
    assert IMAGE in trace
    assert "nothing" not in trace
    assert 0 not in trace
    assert all(trace[name] is value for name, value in dict(trace).items())
    assert Trace(trace.images)  # of features alone, and none kept


def test_a_trace_and_a_model_are_shown_in_short() -> None:
    model = build_small("vit")
    trace = model.run(random_images(model))
    assert repr(trace).startswith(f"Trace(image {tuple(trace.images.shape)}, ")
    assert f"backbone {tuple(trace['backbone'].shape)}" in repr(trace)
    assert "tensor" not in repr(trace)
    height, width = model.pixels.size
    shown = f"StagedModel({model.name}, {height}x{width}, weights: {model.weights}, stages: {', '.join(model.stages)})"
    assert repr(model) == shown


def test_images_of_another_kind_or_range_are_refused() -> None:
    model = build_small("vit")
    images = random_images(model)
    for wrong in ((images * 255).byte(), (images > 0.5), images.long()):
        with pytest.raises(UserError, match=r"float RGB in \[0, 1\] is wanted, as images / 255"):
            model.run(wrong)
    for wrong in (images * 255, -255 * images):
        for call in (
            model.run,
            lambda wrong: model.features(wrong, model.stages),
            lambda wrong: model.answer(wrong, ()),
        ):
            with pytest.raises(UserError, match=r"as far out as 25\d: float RGB in \[0, 1\] is wanted"):
                call(wrong)
    edited = (1.2 * images - 0.1).requires_grad_()  # as a gradient may leave it
    assert model.run(edited).output is not None


def test_an_answer_is_asked_of_a_trace() -> None:
    model = build_small("vit")
    with pytest.raises(UserError, match=r"model.predict\(model.run\(images\)\)"):
        model.predict(random_images(model))  # pyright: ignore[reportArgumentType]


def test_an_output_is_the_library_s_own(model: StagedModel) -> None:
    images = random_images(model)
    args, kwargs = call_with(model.pixels.normalise(images), model.arguments, model.image_argument)
    expected = model.module(*args, **kwargs)
    assert same(model.run(images).output, expected)


def test_a_run_until_a_stage_holds_nothing_later(model: StagedModel) -> None:
    images = random_images(model)
    whole = model.run(images)
    for name in model.names:
        trace = model.run(images, until=name)
        assert torch.equal(trace[name], whole[name])
        allowed = {each for each in model.names if whole.raw[each].order <= whole.raw[name].order}
        assert trace.features.keys() <= allowed
        assert all(call.order <= whole.raw[name].order for calls in trace.calls.values() for call in calls.values())
        assert trace.output is None
        assert not patched(model)


def test_features_leave_the_pass_at_the_last_that_is_wanted(model: StagedModel) -> None:
    own = build_small(model.spec.family)
    calls: list[str] = []
    own.module.register_forward_hook(lambda *_: calls.append("end"))
    images = random_images(own)
    own.features(images, own.stages[:1])
    assert calls == []
    own.features(images, [IMAGE])
    assert calls == []
    own.run(images)
    assert calls == ["end"]


def test_a_pass_leaves_the_model_as_it_was(model: StagedModel) -> None:
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    digest = model.digest()
    first, second = (model.run(random_images(model)) for _ in range(2))
    assert same(first.output, second.output)  # dropout is off
    assert all(torch.equal(value, state[name]) for name, value in model.module.state_dict().items())
    assert model.digest() == digest
    assert not model.module.training
    assert not patched(model)


# ---- resume


def test_unchanged_features_give_the_same_output(model: StagedModel) -> None:
    trace = model.run(random_images(model))
    for name in model.names:
        assert same(model.resume(name, trace[name], trace).output, trace.output)


def test_an_edit_changes_nothing_before_it(model: StagedModel) -> None:
    trace = model.run(random_images(model))
    kept = {name: value.clone() for name, value in trace.features.items()}
    for name in model.names:
        edit = noisy(trace[name])
        edited = model.resume(name, edit, trace)
        assert torch.equal(edited[name], edit)
        assert all(torch.equal(edited[each], trace[each]) for each in before(trace, name))
        later = [each for each in model.names if trace.raw[each].order > trace.raw[name].order]
        assert all(not torch.equal(edited[each], trace[each]) for each in later)
        assert not same(edited.output, trace.output)
    assert all(torch.equal(trace[name], value) for name, value in kept.items())


def test_a_resumed_trace_can_be_resumed(model: StagedModel) -> None:
    trace = model.run(random_images(model))
    for first in model.names:
        once = model.resume(first, noisy(trace[first], 1), trace)
        for second in set(model.names) - set(before(trace, first)):
            twice = model.resume(second, once[second], once)
            assert same(twice.output, once.output), (first, second)
            assert torch.equal(twice[model.names[-1]], once[model.names[-1]])


def test_an_earlier_edit_forgets_a_later_one(model: StagedModel) -> None:
    trace = model.run(random_images(model))
    for early, late in pairwise(model.names):
        if trace.raw[early].order == trace.raw[late].order:
            continue
        edit = noisy(trace[early], 1)
        direct = model.resume(early, edit, trace)
        detour = model.resume(early, edit, model.resume(late, noisy(trace[late], 2), trace))
        assert same(detour.output, direct.output), (early, late)
        assert torch.equal(detour[late], direct[late])


def test_resume_can_stop_early(model: StagedModel) -> None:
    trace = model.run(random_images(model))
    early, late = model.stages[0], model.stages[-1]
    edit = noisy(trace[early])
    part = model.resume(early, edit, trace, until=late)
    assert torch.equal(part[late], model.resume(early, edit, trace)[late])
    assert part.output is None
    with pytest.raises(UserError, match=f"'{early}' comes before '{late}'"):
        model.resume(late, trace[late], trace, until=early)


def test_a_trace_that_was_left_early_can_be_resumed(model: StagedModel) -> None:
    images = random_images(model)
    first = model.stages[0]
    part = model.run(images, until=first)
    assert same(model.resume(first, part[first], part).output, model.run(images).output)
    with pytest.raises(UserError, match=f"nothing at '{model.stages[-1]}'"):
        model.resume(model.stages[-1], part[first], part)


# ---- gradients


def test_gradients_flow_to_the_images(model: StagedModel) -> None:
    images = random_images(model, batch=1).requires_grad_()
    trace = model.run(images)
    for name in model.stages:
        (slope,) = torch.autograd.grad(trace[name].square().sum(), images, retain_graph=True)
        assert slope.abs().max() > 0, name


def test_gradients_flow_to_edited_features(model: StagedModel) -> None:
    trace = model.run(random_images(model, batch=1))
    assert not any(value.requires_grad for value in trace.features.values())
    for name in model.stages:
        edit = noisy(trace[name]).requires_grad_()
        (output, *_) = tensors(model.resume(name, edit, trace).output)
        (slope,) = torch.autograd.grad(output.square().sum(), edit)
        assert slope.abs().max() > 0, name
    assert all(parameter.grad is None for parameter in model.module.parameters())


# ---- order in the house: exceptions, threads


@pytest.fixture(params=[False, True], ids=["run", "resume"])
def enter(request: pytest.FixtureRequest, model: StagedModel) -> Callable[[], object]:
    """A whole pass, or the rest of one."""
    trace, first = model.run(random_images(model)), model.stages[0]
    return (lambda: model.resume(first, trace[first], trace)) if request.param else (lambda: model.run(trace.images))


def test_an_exception_inside_a_pass_leaves_no_patch(model: StagedModel, enter: Callable[[], object]) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("boom")

    handle = model.module.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="boom"):
        enter()
    handle.remove()
    assert not patched(model)
    enter()


def test_a_forward_that_was_patched_before_stays_patched() -> None:
    model = build_small("vit")
    patch_embed: Any = model.module.patch_embed
    original, calls = patch_embed.forward, []

    def counted(*args: Any) -> Tensor:
        calls.append(1)
        return original(*args)

    patch_embed.forward = counted
    trace = model.run(random_images(model))
    model.resume("encoder", trace["encoder"], trace)
    assert patch_embed.forward is counted
    assert len(calls) == 1  # once in the run; the replay answers from the trace


@pytest.mark.parametrize("family", quick(MODELS, "vit", "detr", "deformable_detr", "rt_detr"))
def test_parallel_threads_give_what_one_gives(family: str, small_model: Callable[[str], StagedModel]) -> None:
    model = small_model(family)
    trace = model.run(random_images(model))

    def work(index: int) -> Tensor:
        name = model.names[index % len(model.names)]
        if index % 3 == 0:
            return model.run(random_images(model, seed=index))[model.names[-1]]
        return model.resume(name, noisy(trace[name], index), trace)[model.names[-1]]

    serial = [work(index) for index in range(12)]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(work, range(12)))
    assert_rounding(parallel, serial)  # threads of a pool may share a sum among fewer of torch's own


# ---- the user's mistakes


MISTAKES: dict[str, tuple[Callable[[StagedModel, Trace], object], str]] = {
    "run": (lambda model, trace: model.run(trace.images, until="nose"), "no stage or layer 'nose' in small"),
    "features": (lambda model, trace: model.features(trace.images, ["nose"]), "no stage or layer 'nose'"),
    "resume": (lambda model, trace: model.resume("nose", trace[IMAGE], trace), "no stage or layer 'nose'"),
    "until": (
        lambda model, trace: model.resume(model.names[0], trace[model.names[0]], trace, until="nose"),
        "no stage or layer 'nose'",
    ),
    "layout": (lambda model, trace: model.layout("nose"), "no stage or layer 'nose'"),
    "sites": (lambda model, trace: model.sites("nose"), "no stage or layer 'nose'"),
    "stage": (lambda model, trace: model.spec.stage("nose"), "no stage 'nose' in .*: it has backbone"),
    "trace": (lambda model, trace: trace["nose"], "the trace has nothing at 'nose': it holds"),
    "batch": (
        lambda model, trace: model.resume(model.names[0], trace[model.names[0]][:1], trace),
        r"have shape \(2, .*\), got \(1, ",
    ),
    "channels": (lambda model, trace: model.run(trace.images[:, :1]), r"images of shape \(2, 1, .* takes B 3 "),
    "size": (lambda model, trace: model.run(trace.images[..., 1:]), "takes B 3 .* load the model with another size"),
    "one image": (lambda model, trace: model.features(trace.images[0], [model.names[0]]), "images of shape"),
    "early": (lambda model, trace: model.predict(model.run(trace.images, until=model.names[0])), "without 'until'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("family", ["vit", "detr"])
def test_a_mistake_is_told(family: str, mistake: str, small_model: Callable[[str], StagedModel]) -> None:
    (act, message), model = MISTAKES[mistake], small_model(family)
    trace = model.run(random_images(model))
    with pytest.raises(UserError, match=message):
        act(model, trace)
    assert not patched(model)

"""Look: a picture, what the model says of it, and what is left of it at every stage and layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from backsight.app.answers import told
from backsight.app.eyes import Eyes, Seen
from backsight.app.frames import Frame, frame, frames
from backsight.app.markup import answer_list, card_line, picture, tag, text
from backsight.app.observatory import Observatory
from backsight.app.pictures import answered, cut_padding, picture_uri
from backsight.app.state import SPREAD, Look
from backsight.app.views.base import View, describe
from backsight.figures import grid, to_png


def look(observatory: Observatory, state: Look) -> View:
    """The view of ``state``, through one model or two.

    Raises:
        UserError: a model, picture, layer or seed that is not there.
    """
    state = replace(
        state, model=state.model or observatory.choose("").name, picture=state.picture or observatory.examples[0]
    )
    every = [observatory.choose(name) for name in dict.fromkeys((state.model, state.also)) if name]
    seen = [(eyes, eyes.see(observatory.source(state.picture, eyes))) for eyes in every]
    parts = [_part(eyes, each, state) for eyes, each in seen]

    def numbers() -> dict[str, Any]:
        models = [describe(eyes, each, state.threshold) for eyes, each in seen]
        return {"picture": state.picture, "threshold": state.threshold, "models": models}

    return View(state, "".join(parts), numbers, lambda: _plate(seen, state))


def _part(eyes: Eyes, seen: Seen, state: Look) -> str:
    at = state.at if state.at in eyes.layers else eyes.stages[-1]
    found = frames(eyes, seen, state.shows)
    hero = [_answer(eyes, seen, state), _wipe(seen, found[at], state.shows), _facts(eyes, seen, state, found[at])]
    cells = [found[name].cell() for name in eyes.stages]
    return tag(
        "article",
        tag("header", text("h2", eyes.name), card_line(eyes.card())),
        tag("div", *hero, class_="hero"),
        _layers(eyes, found, at),
        tag("div", text("h3", "Every stage"), tag("div", *cells, class_="cells"), class_="strip"),
        class_="eyes",
    )


def _answer(eyes: Eyes, seen: Seen, state: Look) -> str:
    image = answered(eyes, seen, state.threshold)
    says = ", ".join(f"{line.name} {line.score:.0%}" for line in told(eyes.answer(seen), state.threshold))
    describes = f"The picture, with what {eyes.name} says of it: {says or 'nothing'}"
    return tag(
        "figure",
        picture(picture_uri(image), describes, _size(image)),
        text("figcaption", "The picture, and what the model says"),
    )


def _wipe(seen: Seen, shown: Frame, shows: str) -> str:
    own = cut_padding(seen.image.cpu(), seen)
    kind = "spread of the seeds" if shows == SPREAD else "reconstruction"
    words = f"Before and after: the picture, and its {kind}"
    slider = tag("input", type="range", min=0, max=100, value=50, aria_label=words, data_wipe=True)
    below = picture(picture_uri(own), "The picture", _size(own))
    above = picture(shown.address, f"The {kind} from {shown.name}", shown.size, class_="over", data_frame=True)
    name = text("b", shown.name, data_name=True)
    return tag(
        "figure",
        tag("div", below, above, slider, class_="wipe"),
        tag("figcaption", text("span", f"Left the picture, right the {kind} from "), name),
    )


def _facts(eyes: Eyes, seen: Seen, state: Look, shown: Frame) -> str:
    lines = told(eyes.answer(seen), state.threshold)
    says = "It detects" if eyes.model.spec.task == "detect" else "It says"
    error = tag(
        "p",
        text("b", f"{shown.error:.4f}", class_="figure", data_error=True),
        text("span", " at ", class_="soft"),
        text("b", shown.name, data_name=True),
    )
    compared = f"mean squared error; an inverse that knows nothing has {eyes.baseline(seen):.4f}"
    return tag(
        "div",
        tag("div", text("h3", says), answer_list(lines)),
        tag("div", text("h3", "What is lost"), error, text("p", compared, class_="soft")),
        class_="facts",
    )


def _layers(eyes: Eyes, found: dict[str, Frame], at: str) -> str:
    """The slider through all layers; over each of its steps a bar as high as the error is there."""
    bars = [_layer(each, name in eyes.stages, name == at) for name, each in found.items()]
    words = {"aria_label": f"Layer of {eyes.name}", "aria_valuetext": f"{at}, error {found[at].error:.4f}"}
    last = len(bars) - 1
    place = list(found).index(at)
    return tag(
        "div",
        text("h3", "Every layer, and the error of its reconstruction"),
        tag("div", *bars, class_="bars"),
        tag("input", type="range", min=0, max=last, value=place, step=1, data_layers=True, **words),
        class_="layers",
        style=f"--count:{len(bars)}",
    )


def _layer(each: Frame, is_stage: bool, is_shown: bool) -> str:
    return tag(
        "button",
        tag("i", style=f"--share:{each.share:.3f}"),
        text("span", each.name if is_stage else each.name.rpartition(".")[2]),
        type="button",
        tabindex=-1,  # the slider below is the way of the keyboard
        title=f"{each.name}: {each.error:.4f}",
        class_="stage" if is_stage else None,
        aria_pressed="true" if is_shown else "false",
        data_layer=each.name,
        data_error=f"{each.error:.4f}",
        data_src=each.address,
    )


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _plate(seen: list[tuple[Eyes, Seen]], state: Look) -> bytes:
    columns = max((eyes.stages for eyes, _ in seen), key=len)
    rows: list[list[Any]] = []
    captions: list[list[str]] = []
    for eyes, each in seen:
        found = [frame(eyes, each, name, state.shows) for name in eyes.stages]
        empty = len(columns) - len(found)
        rows.append([answered(eyes, each, state.threshold), *(one.image for one in found), *[None] * empty])
        captions.append([_weights(eyes), *(f"{one.name} {one.error:.4f}" for one in found), *[""] * empty])
    return to_png(grid(rows, ["picture", *columns], [eyes.name for eyes, _ in seen], captions))


def _weights(eyes: Eyes) -> str:
    card = eyes.card()
    return "random weights" if card["random"] else str(card["weights"])

"""Change: the same picture before and after it was recoloured, or its tokens replaced, and what the model says."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from backsight.app.answers import told
from backsight.app.changes import Changed, apply, places, settled
from backsight.app.eyes import Eyes, Seen
from backsight.app.frames import frame
from backsight.app.markup import answer_list, bar, card_line, picture, sheet, tag, text
from backsight.app.observatory import Observatory
from backsight.app.pictures import answered, cut_padding, picture_uri
from backsight.app.state import MEAN, SPREAD, Change, read_cells
from backsight.app.views.base import View, describe
from backsight.figures import colour_map, difference, grid, to_png

LARGEST_DIFFERENCE = 0.3
"""The root mean square over the colours that has the brightest colour on every map of differences."""


def change(observatory: Observatory, state: Change) -> View:
    """The view of ``state``.

    Raises:
        UserError: it names what is not there.
    """
    state = settled(observatory, state)
    eyes = observatory.choose(state.model)
    changed = apply(observatory, state)

    def numbers() -> dict[str, Any]:
        after = describe(eyes, changed.after, picture_of=changed.before)
        before = describe(eyes, changed.before)
        return {"picture": state.picture, "changes": words_of(observatory, state), "before": before, "after": after}

    body = tag(
        "article",
        tag("header", text("h2", f"What {eyes.name} makes of it"), card_line(eyes.card())),
        _answers(eyes, changed, words_of(observatory, state)),
        tag("div", text("h3", "Every stage"), _stages(eyes, changed, state.shows), _legend()),
        class_="eyes",
    )
    return View(state, body, numbers, lambda: _plate(eyes, changed, state))


def words_of(observatory: Observatory, state: Change) -> list[str]:
    """What was changed, in words; nothing if nothing was."""
    eyes = observatory.choose(state.model)
    words = []
    if state.colour != "none":
        known = dict(places(eyes, observatory.source(state.picture, eyes)))
        words.append(f"{state.colour}: {known[state.where]}")
    if state.tokens:
        count = int(read_cells(state.tokens, eyes.grids[state.stage]).sum())
        words.append(f"{state.noise} at {state.stage}: {count} token{'s' if count > 1 else ''}")
    return words


def _answers(eyes: Eyes, changed: Changed, changes: list[str]) -> str:
    before, after = told(eyes.answer(changed.before)), told(eyes.answer(changed.after))
    words = "; ".join(changes) or "nothing is changed yet"
    return tag(
        "div",
        _side(eyes, changed.before, "Before", ""),
        tag("div", text("h3", "It said"), answer_list(before), class_="facts"),
        _side(eyes, changed.after, "After", words),
        tag("div", text("h3", "It says now"), answer_list(after, before), class_="facts"),
        class_="pair",
    )


def _side(eyes: Eyes, seen: Seen, title: str, words: str) -> str:
    image = answered(eyes, seen)
    size = (image.shape[-2], image.shape[-1])
    caption = tag("figcaption", text("b", title), text("span", f" {words}" if words else ""))
    return tag("figure", picture(picture_uri(image), f"{title}: {words or 'the picture as it is'}", size), caption)


def _stages(eyes: Eyes, changed: Changed, shows: str) -> str:
    if changed.after is changed.before:
        return sheet(
            {"now": {name: frame(eyes, changed.before, name, shows).cell(" ") for name in eyes.stages}},
            eyes.stages,
            "Reconstructions from every stage",
        )
    rows: dict[str, dict[str, str]] = {"before": {}, "after": {}, "difference": {}}
    for name in eyes.stages:
        before = frame(eyes, changed.before, name, shows)
        after = frame(eyes, changed.after, name, shows, changed.before)
        rows["before"][name], rows["after"][name] = before.cell(" "), after.cell(" ")
        rows["difference"][name] = difference_cell(_moved(eyes, changed, name, shows))
    return sheet(rows, eyes.stages, "Reconstructions from every stage, before and after")


def _moved(eyes: Eyes, changed: Changed, name: str, shows: str) -> Tensor:
    """Where the reconstructions differ, ``H W``; of the mean where the spread is shown."""
    shown = MEAN if shows == SPREAD else shows
    before, after = (frame(eyes, seen, name, shown).image for seen in (changed.before, changed.after))
    return difference(before, after)


def difference_cell(values: Tensor) -> str:
    """A map of differences, ``H W``, over their root mean square."""
    size = (values.shape[-2], values.shape[-1])
    strength = float(values.square().mean().sqrt())
    shown = picture(picture_uri(colour_map(values, LARGEST_DIFFERENCE)), f"Difference, {strength:.3f} on average", size)
    caption = tag("figcaption", text("span", f"{strength:.3f}", title="root mean square of the difference"))
    return tag("figure", shown, caption, bar(strength / LARGEST_DIFFERENCE))


def _legend() -> str:
    words = (
        "Under each picture: its mean squared error from the untouched picture. Under each map: the root mean square "
        f"of the difference; its scale ends at {LARGEST_DIFFERENCE}."
    )
    return text("p", words, class_="soft legend")


def _plate(eyes: Eyes, changed: Changed, state: Change) -> bytes:
    rows: list[list[Tensor | None]] = []
    captions = []
    for seen in (changed.before, changed.after):
        found = [frame(eyes, seen, name, state.shows, changed.before) for name in eyes.stages]
        rows.append([answered(eyes, seen), *(each.image for each in found)])
        captions.append(["", *(f"{each.error:.4f}" for each in found)])
    moved = difference(*(cut_padding(each.image.cpu(), each) for each in (changed.before, changed.after)))
    maps = [moved, *(_moved(eyes, changed, name, state.shows) for name in eyes.stages)]
    rows.append([colour_map(each, LARGEST_DIFFERENCE) for each in maps])
    captions.append([f"{float(each.square().mean().sqrt()):.3f}" for each in maps])
    weights = "random weights" if eyes.card()["random"] else ""
    titles = [" ".join(filter(None, [eyes.name, weights])), *eyes.stages]
    return to_png(grid(rows, titles, ["before", "after", "difference"], captions))

"""Pictures under a grid whose cells can be chosen: by pointer, by finger, or by the keyboard."""

from __future__ import annotations

from torch import Tensor

from backsight.app.changes import BRUSH, BRUSHED, EVERYWHERE, region_of
from backsight.app.eyes import Eyes
from backsight.app.markup import picture, tag, text
from backsight.app.observatory import Observatory
from backsight.app.pictures import cut_padding, picture_uri
from backsight.app.state import Change
from backsight.figures import outline

MARK = "#e69f00"
"""Of the outline of what is recoloured."""


def token_board(observatory: Observatory, state: Change) -> str:
    """The picture under the grid of tokens of a stage; what is chosen goes to the hidden value ``tokens``."""
    eyes = observatory.choose(state.model)
    image = eyes.see(observatory.source(state.picture, eyes)).image.cpu()
    grid = eyes.grids[state.stage]
    words = f"Tokens of {state.stage}: {grid[0]} rows, {grid[1]} columns"
    return _board("tokens", image, grid, state.tokens, words, buttons=("All", "None", "Invert"))


def colour_board(observatory: Observatory, state: Change) -> str:
    """The picture with what is recoloured outlined; under the brush, a grid that is painted on."""
    eyes = observatory.choose(state.model)
    source = observatory.source(state.picture, eyes)
    if state.where == BRUSHED:
        return _board("brush", source.image, BRUSH, state.brush, "Where to recolour: paint", buttons=("None", "Invert"))
    image = source.image
    if state.where != EVERYWHERE:
        image = outline(image, region_of(eyes, source, state), MARK, width=max(1, image.shape[-1] // 96))
    shown = _whole(eyes, observatory, state, image)
    size = (shown.shape[-2], shown.shape[-1])
    words = "all of it is recoloured" if state.where == EVERYWHERE else "what is recoloured is outlined"
    return tag("figure", picture(picture_uri(shown), f"The picture; {words}", size), class_="board still")


def _whole(eyes: Eyes, observatory: Observatory, state: Change, image: Tensor) -> Tensor:
    return cut_padding(image, eyes.see(observatory.source(state.picture, eyes)))


def _board(name: str, image: Tensor, grid: tuple[int, int], value: str, words: str, *, buttons: tuple[str, ...]) -> str:
    size = (image.shape[-2], image.shape[-1])
    help_words = f"{words}. Arrow keys move, the space bar chooses, shift and an arrow paint."
    cells = tag(
        "div",
        picture(picture_uri(image), "", size),
        "<canvas></canvas>",
        class_="cells-of",
        tabindex=0,
        role="application",
        aria_label=help_words,
    )
    whole = [text("button", each, type="button", data_fill=each.lower()) for each in buttons]
    said = text("span", "", role="status", class_="soft")
    below = tag("div", *whole, said, class_="below")
    return tag(
        "div", cells, below, class_="board", data_board=name, data_rows=grid[0], data_columns=grid[1], data_value=value
    )

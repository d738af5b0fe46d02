"""Pieces of the page. All text is escaped here, and every picture says what it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from backsight.app.answers import Line


def tag(name: str, *content: str, **attributes: Any) -> str:
    """An element: attributes are escaped (``class_`` and ``data_x`` become ``class`` and ``data-x``), True stands
    alone, False and None are left out; ``content`` is markup already."""
    parts = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            parts.append(key if value is True else f'{key}="{escape(str(value))}"')
    opened = f"<{' '.join(parts)}>"
    return opened if name in ("img", "input", "br") else f"{opened}{''.join(content)}</{name}>"


def text(name: str, words: str, **attributes: Any) -> str:
    """An element that holds words, which are escaped."""
    return tag(name, escape(words), **attributes)


def picture(address: str, describes: str, size: tuple[int, int], **attributes: Any) -> str:
    """A picture of ``size`` (H, W), so that nothing jumps when it comes; few pixels are shown as squares."""
    small = "small" if min(size) < 200 else None
    classes = " ".join(filter(None, [small, attributes.pop("class_", None)])) or None
    return tag("img", src=address, alt=describes, height=size[0], width=size[1], class_=classes, **attributes)


def bar(share: float) -> str:
    """A bar of which ``share`` (0..1) is full: the number beside it says the same."""
    return tag("i", class_="bar", style=f"--share:{min(1.0, share):.3f}", aria_hidden="true")


def card_line(card: Mapping[str, Any]) -> str:
    """Which weights are shown, in one line; a loud one where they are random."""
    count = len(card["seeds"])
    seeds = f"{count} seed{'s' if count > 1 else ''} of inverses"
    line = text(
        "p",
        f"weights: {card['weights']} · {seeds} · {card['size'][0]}\u00a0×\u00a0{card['size'][1]}",
        class_="soft card",
    )
    if not card["random"]:
        return line
    words = "Random weights: nothing here is what a trained model knows."
    return line + text("p", words, class_="warning", role="note")


def answer_list(lines: Iterable[Line], earlier: Sequence[Line] | None = None) -> str:
    """What a model says, each line with a bar as long as it is sure; marked is what ``earlier`` does not have."""
    known = None if earlier is None else {line.name for line in earlier}
    rows = [
        tag(
            "li",
            text("span", line.name, class_="new" if known is not None and line.name not in known else None),
            text("b", f"{line.score:.0%}"),
            bar(line.score),
        )
        for line in lines
    ]
    return tag("ol", *rows, class_="answers") if rows else text("p", "Nothing above the least score.", class_="soft")


def sheet(rows: Mapping[str, Mapping[str, str]], columns: Sequence[str], what: str) -> str:
    """Cells side by side: a row for each title of ``rows``, a column for each of ``columns``; where there is little
    room, the other way round. A row lacks what it has nothing to show for."""
    cells = [
        text("b", title, class_="title", style=f"--row:{index + 2};--column:1", title=title)
        for index, title in enumerate(rows)
    ]
    cells += [
        text("b", column, class_="title", style=f"--row:1;--column:{place + 2}") for place, column in enumerate(columns)
    ]
    for index, row in enumerate(rows.values()):
        cells += [
            tag("div", row[column], style=f"--row:{index + 2};--column:{place + 2}")
            for place, column in enumerate(columns)
            if column in row
        ]
    counts = f"--rows:{len(rows)};--columns:{len(columns)}"
    return tag("div", *cells, class_="sheet", style=counts, role="group", aria_label=what)


def share_bar(query: str, view: str) -> str:
    """The permanent link of what is shown, and the same as files."""
    return tag(
        "nav",
        text("a", "Permanent link", href=f"?{query}", data_link=True),
        text("button", "Copy it", type="button", data_copy=True),
        text("a", "PNG", href=f"download/{view}.png?{query}", download=f"backsight-{view}.png", data_file=True),
        text("a", "JSON", href=f"download/{view}.json?{query}", download=f"backsight-{view}.json", data_file=True),
        text("span", "", class_="soft", role="status"),
        class_="share",
        aria_label="Keep or send this view",
    )


def working(done: int, total: int) -> str:
    """How far long work has come."""
    words = f"{done} of {total} reconstructions"
    meter = tag("progress", max=total, value=done, aria_label=words)
    return tag("div", meter, text("p", words, class_="soft", role="status"), class_="progress working")


def trouble(message: str) -> str:
    """One line about what went wrong, and what would be right."""
    ended = message[:1].upper() + message[1:] + ("" if message.endswith(".") else ".")
    return text("p", ended, class_="trouble", role="alert")

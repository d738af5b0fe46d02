"""Fonts for names in any script: matplotlib's own, and what this machine has for letters that it lacks."""

from __future__ import annotations

import logging
from functools import cache

logger: logging.Logger = logging.getLogger(__name__)

OWN = "DejaVu Sans"
"""It comes with matplotlib: letters are the same on every machine."""

OTHERS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "WenQuanYi Zen Hei"),
    *("Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Yu Gothic", "Malgun Gothic", "Apple SD Gothic Neo"),
    *("Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Noto Sans Ethiopic"),
    *("Nirmala UI", "Leelawadee UI", "Ebrima", "Arial Unicode MS", "Droid Sans Fallback", "Unifont"),
)
"""What systems have for other scripts, the first that are taken first."""


@cache
def installed() -> dict[str, str]:
    """The files of those families that are here, :data:`OWN` first; matplotlib takes letters from each in turn."""
    from matplotlib.font_manager import fontManager

    files = {each.name: each.fname for each in reversed(fontManager.ttflist) if each.style == "normal"}
    own = next(each.fname for each in fontManager.ttflist if each.fname.endswith("DejaVuSans.ttf"))
    return {OWN: own, **{name: files[name] for name in OTHERS if name in files}}


def font_file(text: str) -> str:
    """The file of the first font that has all letters of ``text``; :data:`OWN`, and a word in the log, if none has."""
    return _font_file("".join(sorted({letter for letter in text if letter.isprintable()})))


@cache
def _font_file(letters: str) -> str:
    from matplotlib.ft2font import FT2Font

    for path in installed().values():
        there = FT2Font(path).get_charmap()
        if all(ord(letter) in there for letter in letters):
            return path
    lacking = "".join(letter for letter in letters if ord(letter) not in FT2Font(installed()[OWN]).get_charmap())
    logger.warning("no font here has '%s': labels show boxes instead; install Noto Sans CJK, say", lacking)
    return installed()[OWN]

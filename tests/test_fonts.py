"""Letters of any script: a font that has them, or a word that none has."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from backsight.figures import fonts


def test_a_font_is_taken_that_has_the_letters(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    letters = {"own": "cat", "other": "cat\u732b"}
    monkeypatch.setattr(fonts, "installed", lambda: {fonts.OWN: "own", "Noto Sans CJK SC": "other"})
    charmaps = {
        path: SimpleNamespace(get_charmap=lambda known=known: set(map(ord, known))) for path, known in letters.items()
    }
    monkeypatch.setattr("matplotlib.ft2font.FT2Font", charmaps.__getitem__)
    fonts._font_file.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [fonts.font_file(text) for text in ("cat", "a \u732b".replace(" ", ""))] == ["own", "other"]
        assert caplog.text == ""
        assert [fonts.font_file("\u0e41"), fonts.font_file("\u0e41")] == ["own", "own"]
    assert caplog.text.count("no font here has '\u0e41'") == 1
    fonts._font_file.cache_clear()


def test_matplotlib_s_own_comes_first() -> None:
    assert next(iter(fonts.installed())) == "DejaVu Sans"
    assert fonts.font_file("caf\u00e9 80 %").endswith("DejaVuSans.ttf")

"""Commands as the tests give them."""

from __future__ import annotations

import pytest

from backsight.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that ends with status 2."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line]
    assert (stop.value.code, len(lines)) == (2, 1), said
    assert lines[0].startswith("backsight: ")
    return lines[0]

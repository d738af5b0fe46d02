"""Every notebook runs from its first cell to its last, and is kept without outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_begins_by_installing(path: Path) -> None:
    code = cells(path, "code")
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert "%pip install" in "".join(code[0]["source"])
    text = "".join(line for cell in cells(path, "markdown") for line in cell["source"])
    assert "What you may conclude" in text
    for link in re.findall(r"\]\(([\w.-]+\.ipynb)\)", text):
        assert (path.parent / link).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path, "code")):
        source = re.sub(r"^(\s*)%pip.*$", r"\1pass", "".join(cell["source"]), flags=re.M)
        exec(compile(source, f"{path.name}, cell {number}", "exec"), names)

"""Training starts where processes do not fork: as on macOS and Windows (spawn), and as in Python 3.14 (forkserver)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backsight.figures import image_png

SCRIPT = """
import multiprocessing
import backsight as bs

if __name__ == "__main__":
    multiprocessing.set_start_method("{method}")
    bs.train("zoo/vit-prior", data="folder:photos", out="run", steps=3, seeds=1, batch_size=4, workers=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_training_starts_where_processes_do_not_fork(method: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(40):
        (tmp_path / "photos" / f"{index}.png").write_bytes(image_png(torch.rand(3, 32, 32)))
    (tmp_path / "script.py").write_text(SCRIPT.format(method=method), encoding="utf-8")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "card.md").is_file()

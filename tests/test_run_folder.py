"""The folder of a run, in which others have written, or a disk has failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from backsight.core import UserError
from backsight.io import write_checkpoint, write_text
from backsight.training.folder import RunFolder


def test_foreign_lines_in_the_metrics_stop_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"step": 1, "loss": 2.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n"words"\n{"step": "x"}\n{"no": 1}\n\n')
    folder.log({"step": 2, "loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "lo')
    assert [record["step"] for record in folder.metrics()] == [1, 2]
    folder.forget_after(1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_with_every_checkpoint_damaged_each_try_to_resume_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "checkpoints" / "step-00000001.pt", {"step": 1})
    write_text(path.with_name(f"{path.name}.sha256"), f"{'0' * 64}  {path.name}\n")
    for _ in range(3):
        with pytest.raises(UserError, match="is damaged, and there is no checkpoint before it: overwrite begins again"):
            RunFolder(tmp_path).checkpoints.load()

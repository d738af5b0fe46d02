"""The page of a folder of results, whatever kind they are."""

from __future__ import annotations

from pathlib import Path

from backsight.report.experiments import write_experiments_report
from backsight.report.page import write_report
from backsight.report.results import Results


def rewrite_report(folder: str | Path) -> Path:
    """Write ``report.html`` again, of a run's ``results.json``, of one experiment, or of a reproduction.

    Raises:
        UserError: the folder holds none of them, or a file in it cannot be read.
    """
    folder = Path(folder)
    of_experiments = any((folder / name).is_file() for name in ("reproduce.json", "result.json"))
    if of_experiments and not (folder / "results.json").is_file():
        return write_experiments_report(folder)
    return write_report(Results.load(folder), folder / "report.html")

"""The page of a folder of results, whatever kind they are."""

from __future__ import annotations

from pathlib import Path

from backsight.core import UserError
from backsight.report.experiments import write_experiments_report
from backsight.report.page import write_report
from backsight.report.results import Results

_RESULTS = ("results.json", "result.json", "reproduce.json")


def rewrite_report(folder: str | Path) -> Path:
    """Write ``report.html`` again, of a run's ``results.json``, of one experiment, or of a reproduction.

    ``folder`` may be such a file itself, the page is then written beside it.

    Raises:
        UserError: the folder holds none of them, or a file in it cannot be read.
    """
    folder = Path(folder)
    if folder.is_file() and folder.name not in _RESULTS:
        raise UserError(f"{folder} holds no results: give {', '.join(_RESULTS)}, or the folder it is in")
    folder = folder.parent if folder.is_file() else folder
    of_experiments = any((folder / name).is_file() for name in _RESULTS[1:])
    if of_experiments and not (folder / "results.json").is_file():
        return write_experiments_report(folder)
    return write_report(Results.load(folder), folder / "report.html")

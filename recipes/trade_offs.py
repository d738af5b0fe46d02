"""The tables of a finished sweep, as they ship with a model: ``python -m recipes.trade_offs SWEEP detr-prior``.

They are what ``backsight reproduce`` tests the claims of the trade-off on where no runs are named: means over the test
images by seed, no weights. ``docs/training-tasks.md`` has the sweep.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import tyro
import yaml
from tyro.conf import Positional

from backsight.core import UserError
from backsight.experiments.trade_off import OF_IMAGES, FinishedRun
from backsight.io import write_text
from backsight.shipped import ZOO

KEPT = ("command", "model", "task", "trade_off", "update", "stage", "seeds", "versions")
"""Of a run's configuration."""


def keep_tables(sweep: Positional[Path], name: Positional[str], out: Path | None = None) -> None:
    """Keep the tables of all finished runs of a sweep.

    Args:
        sweep: The folder of its runs.
        name: Of the model in the zoo, as detr-prior.
        out: The folder for the tables; the model's own by default.
    """
    folders = [path.parent for path in sorted(sweep.glob("*/card.md"))]
    if not folders:
        raise UserError(f"no finished run in {sweep}: name the folder of a sweep")
    for folder in folders:
        target = (out or ZOO / name / "runs") / folder.name
        run = FinishedRun.read(folder)
        means = [
            replace(each, values=torch.tensor(each.by_seed(), dtype=torch.float64)[:, None], stated=None)
            for each in run.evaluation.measurements
            if each.labels["metric"] in OF_IMAGES or each in run.task_metrics
        ]
        replace(run.evaluation, measurements=means, images={}).write(target / "evaluation.json")
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        write_text(target / "config.yaml", yaml.safe_dump({key: config[key] for key in KEPT if key in config}))
        write_text(target / "card.md", (folder / "card.md").read_text(encoding="utf-8"))
        print(target)


if __name__ == "__main__":
    UserError.in_command = True
    try:
        tyro.cli(keep_tables, prog="python -m recipes.trade_offs")
    except UserError as error:
        raise SystemExit(f"recipes: {error}") from error

"""Runs of one seed each, as array jobs leave them, joined into one run of all seeds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backsight.core import UserError
from backsight.evaluation import join_seeds
from backsight.io import write_text
from backsight.results import Result
from backsight.training.folder import RunFolder, files_of_run
from backsight.training.outputs import write_card
from backsight.training.run import SAME_TO_RESUME, command

SAME = tuple(name for name in SAME_TO_RESUME if name not in ("seeds", "data"))
"""What the runs have in common; of their data the part that they were measured on."""


def merge(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Join finished ``runs`` into one run in the folder ``out``: chains, errors, card. The runs stay as they are.

    Returns:
        ``out``.

    Raises:
        UserError: a run that is not finished, runs that are not alike but for their seeds, measured on other images,
            or two of the same seed.
    """
    folders = [RunFolder(run) for run in runs]
    configs = [folder.config() for folder in folders]
    _check(folders, configs)
    seeds = [seed for config in configs for seed in config["seeds"]]
    target = RunFolder(out)
    with target.claimed(resume=False, overwrite=False):
        target.write_config({**configs[0], "command": command(), "seeds": seeds})
        for folder in folders:
            for path in files_of_run(folder.path):
                if path.parent.parent.name in ("chains", "forward"):
                    copied = target.path / path.relative_to(folder.path)
                    copied.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copied)
        for name in ("mean_image.safetensors", "training_range.safetensors"):  # of the same test images
            if (folders[0].path / name).is_file():
                shutil.copyfile(folders[0].path / name, target.path / name)
        _merge_metrics(folders, target)
        result = _merge_results([Result.load(folder.path / "evaluation.json") for folder in folders], folders)
        result.write(target.path / "evaluation.json")
        write_text(target.path / "card.md", write_card(result))
    return target.path


def _check(folders: Sequence[RunFolder], configs: Sequence[Mapping[str, Any]]) -> None:
    if len(folders) < 2:
        raise UserError("there is nothing to merge: name two runs or more, as runs/seed-0 runs/seed-1")
    for folder, config in zip(folders, configs, strict=True):
        if not folder.finished:
            raise UserError(f"{folder.path} holds no finished run: merge runs that have a card.md")
        other = [name for name in SAME if config.get(name) != configs[0].get(name)]
        if other:
            raise UserError(
                f"{folder.path} was trained with another {other[0]} than {folders[0].path}: merge like runs"
            )
    seeds = [seed for config in configs for seed in config["seeds"]]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"the runs have the seeds {', '.join(map(str, seeds))}: each has to be there once")


def _merge_metrics(folders: Sequence[RunFolder], target: RunFolder) -> None:
    """The records of the same step and kind as one: losses are named after their seeds."""
    found: dict[tuple[int, bool], dict[str, Any]] = {}
    for folder in folders:
        for record in folder.metrics():
            known = found.setdefault((record["step"], "losses" in record), record)
            for kind in ("losses", "validation"):
                if kind in record:
                    known[kind] = {**known[kind], **record[kind]}
    for _, record in sorted(found.items()):
        target.log(record)


def _merge_results(results: Sequence[Result], folders: Sequence[RunFolder]) -> Result:
    for result, folder in zip(results, folders, strict=True):
        if result.images != results[0].images:
            raise UserError(
                f"{folder.path} was measured on other images than {folders[0].path}: merge runs that are alike"
            )
    errors = [replace(each, measurements=[m for m in each.measurements if "stage" in m.labels]) for each in results]
    scores = []
    for number, score in enumerate(m for m in results[0].measurements if "stage" not in m.labels):
        rows = [[m for m in each.measurements if "stage" not in m.labels][number].values for each in results]
        alike = all(torch.equal(row, rows[0]) for row in rows)  # of one forward model
        scores.append(score if alike else replace(score, values=torch.cat(rows)))
    joined = join_seeds(errors)
    facts = _facts([each.subjects[0]["training"] for each in results])
    card = {**joined.subjects[0], "training": facts}
    return replace(joined, subjects=[card], measurements=[*joined.measurements, *scores], command=command())


def _facts(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the cards state: of all runs together where that can be added, else of the first."""
    seeds = ", ".join(str(part["seeds"]) for part in parts)
    hours = round(sum(part["device_hours"] for part in parts), 4)
    return {**parts[0], "seeds": seeds, "device_hours": hours, "merged": f"{len(parts)} runs", "command": command()}

"""Pages to look at in a browser: a report of a run, and one of experiments and claims, with numbers that are known."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from backsight.experiments import Measurement, Result
from backsight.experiments.claims import Judgement, Part, save_claims
from backsight.figures import image_png
from backsight.io import write_bytes
from backsight.report import DataCard, ModelCard, Results, StageErrors, save_pictures, write_report
from backsight.report.experiments import FORMAT, write_experiments_report

STAGES = ("backbone", "encoder", "decoder")
ERRORS = {"backbone": 0.009, "encoder": 0.08, "decoder": 0.0101}
"""As words they would be in another order than as numbers with an exponent and with three digits."""


def run_page(folder: Path) -> Path:
    """Two images, three stages, two seeds, every error with its interval, and the losses of ninety steps."""
    return write_report(run_results(folder), folder / "report.html")


def run_results(folder: Path) -> Results:
    """What :func:`run_page` shows; the pictures lie in ``folder``."""
    stages = [
        StageErrors(stage, {"mse": [error, error]}, {"mse": (error, error / 2, error * 2)}, [0.25, 0.75])
        for stage, error in ERRORS.items()
    ]
    shades = {name: index / 4 for index, name in enumerate(("input", *STAGES))}
    rows = [
        save_pictures(
            folder,
            f"photos/{name}.jpg",
            "detects a cat",
            {
                stage: [torch.full((3, 12, 16), shade)] * (1 if stage == "input" else 2)
                for stage, shade in shades.items()
            },
        )
        for name in ("first", "second")
    ]
    return Results(
        title="Through the eyes of a model",
        command="backsight reconstruct runs/model photos",
        model=ModelCard("a/model", "a" * 120, random=True),
        data=DataCard("folder:photos", "test", 40, "b" * 64, (12, 16)),
        card={"images seen": 1000},
        stages=stages,
        mean_image={"mse": 0.1},
        pictures=rows,
        curves=[
            {"step": step, "entry": stage, "seed": 0, "loss": 1 / step} for step in range(1, 90) for stage in STAGES
        ],
    )


def claim(verdict: str, mean: float | None) -> Judgement:
    """A claim that came to ``verdict``, with one effect of this mean, or with none."""
    parts = () if mean is None else (Part("all", mean, mean - 0.1, mean + 0.1, 9, "images", 3, True, verdict),)  # type: ignore[arg-type]
    subjects = ({"model": "a/model", "random": False, "data": "folder:photos"},) if parts else ()
    reason = "" if parts else "stage_error was not done"
    return Judgement(
        *(
            f"id-{verdict}",
            f"A claim that is: {verdict}.",
            "ours",
            "stage_error",
            "SSIM lost",
            "above",
            0.0,
            (0.05, None),
        ),
        *(verdict, reason, parts, subjects),  # type: ignore[arg-type]
    )


CLAIMS = [claim("undecided", 0.1), claim("holds", 10.5), claim("not tested", None), claim("does not hold", -2.0)]


def experiments_page(folder: Path) -> Path:
    """One experiment with nine measurements and one without an answer, and a claim of every verdict."""
    values = [torch.full((2, 3), 10.0**power) for power in range(-4, 5)] + [torch.full((2, 3), torch.nan)]
    measurements = [
        Measurement({"model": "a/model", "metric": f"metric {index}"}, value) for index, value in enumerate(values)
    ]
    card = {"model": "a/model", "random": False, "data": "folder:photos", "num_images": 3, "weights": "a" * 120}
    Result("stage_error", [card], measurements, command="backsight reproduce").save(folder / "stage_error")
    write_bytes(folder / "stage_error" / "figure.png", image_png(torch.rand(3, 60, 90)))
    steps = [{"experiment": "stage_error", "seconds": 3.0, "kept": False, "reason": ""}]
    content = {"format": FORMAT, "command": "backsight reproduce", "steps": steps}
    (folder / "reproduce.json").write_text(json.dumps(content))
    save_claims(CLAIMS, folder / "claims.json")
    return write_experiments_report(folder)

"""Pages to look at in a browser: a report of a run, and one of experiments and claims, with numbers that are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html.parser import HTMLParser
from math import nan
from pathlib import Path

import torch

from backsight.experiments.claims import Effect, Judgement, save_claims
from backsight.figures import image_png
from backsight.io import write_bytes
from backsight.metrics import Interval
from backsight.report import write_report
from backsight.report.experiments import FORMAT, write_experiments_report
from backsight.report.reconstruct import picture_file
from backsight.results import LAYER_ERROR, MEAN_IMAGE, TRAINING_LOSS, Measurement, Picture, Result

STAGES = ("backbone", "encoder", "decoder")
ERRORS = {"backbone": 0.009, "encoder": 0.08, "decoder": 0.0101}
"""As words they would be in another order than as numbers with an exponent and with three digits."""


def error_measurements(model: str, errors: Mapping[str, float], mean_image: float) -> list[Measurement]:
    """Errors of one image and two seeds, and those of the mean image."""
    labels = {"model": model, "metric": "mse"}
    measurements = [
        Measurement({**labels, "stage": MEAN_IMAGE}, torch.tensor([[mean_image]]), Interval(mean_image, nan, nan))
    ]
    for stage, error in errors.items():
        interval = Interval(error, error / 2, error * 2)
        measurements.append(Measurement({**labels, "stage": stage}, torch.full((2, 1), error), interval))
        layer = torch.tensor([[0.25], [0.75]])
        measurements.append(Measurement({"model": model, "stage": stage, "metric": LAYER_ERROR}, layer))
    return measurements


class Page(HTMLParser):
    """Every tag with its attributes, the text outside scripts and styles, and what scripts and styles hold."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.code = {"script": "", "style": ""}
        self.inside: str | None = None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in self.code else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.code[self.inside] += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def run_page(folder: Path) -> Path:
    """Two images, three stages, two seeds, every error with its interval, and the losses of ninety steps."""
    return write_report(Result.load(run_result().write(folder / "results.json")), folder / "report.html")


def run_result() -> Result:
    """What :func:`run_page` shows."""
    model = "a/model"
    shades = {name: index / 4 for index, name in enumerate(("input", *STAGES))}
    pictures = [
        Picture(
            {
                "model": model,
                "image": f"photos/{name}.jpg",
                "stage": stage,
                "row": f"seed {seed}",
                "caption": "detects a cat",
            },
            torch.full((3, 12, 16), shade),
            picture_file(name, stage, seed),
        )
        for name in ("first", "second")
        for stage, shade in shades.items()
        for seed in range(1 if stage == "input" else 2)
    ]
    losses = [
        Measurement({"model": model, "stage": stage, "metric": TRAINING_LOSS, "step": step}, torch.tensor([[1 / step]]))
        for step in range(1, 90)
        for stage in STAGES
    ]
    card = {
        **{"model": model, "weights": "a" * 120, "random": True, "data": "folder:photos", "num_images": 40},
        **{"data_fingerprint": "b" * 64, "size": [12, 16], "fit": "stretch", "value_range": "RGB in [0, 1]"},
        "training": {"images_seen": 1000},
    }
    measurements = [*error_measurements(model, ERRORS, 0.1), *losses]
    return Result("reconstruct", [card], measurements, pictures, command="backsight reconstruct runs/model photos")


def claim(verdict: str, mean: float | None) -> Judgement:
    """A claim that came to ``verdict``, with one effect of this mean, or with none."""
    effect = ("all", mean, (mean or 0) - 0.1, (mean or 0) + 0.1, 9, "images", 3, True, verdict, 0.0, 1.0)
    parts = () if mean is None else (Effect(*effect),)  # type: ignore[arg-type]
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

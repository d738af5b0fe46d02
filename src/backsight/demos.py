"""The main job, on the models that ship with the package."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backsight.core import UserError
from backsight.data import collate, open_data
from backsight.models import load_model
from backsight.report.reconstruct import check_output, write_results
from backsight.training import RunFolder, train

logger = logging.getLogger(__name__)

SHOWN, MEASURED = 12, 500
"""Test images: how many are on a page, and how many the errors are measured on."""


@dataclass(frozen=True)
class Subject:
    """A shipped model, the data it was trained on, and what of the paper's inverses is changed: they are narrowed to
    models of this size, and at the rate of the authors' scripts a few minutes would not do.
    ``share`` is its part of the time, ``page`` its folder."""

    model: str
    data: str
    inverses: tuple[str, ...]
    share: float
    page: str


SUBJECTS = (
    Subject("zoo/detr-prior", "world:prior", ("backbone=deconvolution:expansion=1",), 0.8, "."),
    Subject("zoo/vit-prior", "world:prior:single", ("encoder=blocks:learning_rate=1e-3",), 0.2, "vit"),
)


def demo(out: str | Path = "demo", *, minutes: float = 4.5, seeds: int = 1, seed: int = 0) -> list[Path]:
    """Train inverses of the shipped models from nothing, reconstruct images never seen, measure, and write the pages.

    Args:
        out: the folder for ``report.html`` and ``results.json`` of the detector, the same for the classifier in
            ``vit/``, and the runs in ``runs/``. An earlier demo there is replaced.
        minutes: training time in all.
        seeds: instances of every inverse.
        seed: the first of them.

    Returns:
        The pages.

    Raises:
        UserError: something else lies in ``out`` where the pages or the runs go.
    """
    out = Path(out)
    for subject in SUBJECTS:
        _check(subject, out)
    return [_show(subject, out, minutes, seeds, seed) for subject in SUBJECTS]


def _settings(subject: Subject) -> dict[str, Any]:
    """The options that every run of a demo has, by which it is known again."""
    own = {"data": subject.data, "inverse": subject.inverses, "batch_size": 16}
    return {**own, "max_validation": min(100, MEASURED), "max_test": MEASURED, "tracker": "none"}


def _run_folder(subject: Subject, out: Path) -> Path:
    return out / "runs" / subject.model.removeprefix("zoo/")


def _check(subject: Subject, out: Path) -> None:
    """Refuse to replace what no demo has made."""
    check_output(out / subject.page)
    run = RunFolder(_run_folder(subject, out))
    run.check(resume=False, overwrite=True)
    had = run.config()
    made = {"model": subject.model, **_settings(subject), "inverse": list(subject.inverses)}
    if had and any({**had.get("options", {}), "model": had["model"]["name"]}.get(name) != made[name] for name in made):
        raise UserError(f"{run.path} holds a run that is no demo's: choose another --out")


def _show(subject: Subject, out: Path, minutes: float, seeds: int, seed: int) -> Path:
    minutes = subject.share * minutes
    logger.info("%s: training %d seeds of every inverse for %.1f minutes", subject.model, seeds, minutes)
    model = load_model(subject.model)
    run, page = _run_folder(subject, out), out / subject.page
    settings = {**_settings(subject), "minutes": minutes, "seeds": seeds, "seed": seed}
    ensemble = train(model, out=run, overwrite=True, **settings)
    test = open_data(subject.data, model.pixels).test
    shown = collate([test[index] for index in range(SHOWN)])
    write_results(run, model, ensemble, shown, page)
    return page / "report.html"

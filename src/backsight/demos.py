"""The main job, on the models that ship with the package."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backsight.chain import ChainEnsemble
from backsight.core import UserError
from backsight.data import collate, open_data
from backsight.engine import StagedModel
from backsight.models import load_model
from backsight.options import TrainOptions
from backsight.report.reconstruct import check_output, write_results
from backsight.training import RunFolder, train

logger: logging.Logger = logging.getLogger(__name__)

SHOWN, MEASURED = 12, 300
"""Test images: how many are on a page, and how many the errors are measured on."""


@dataclass(frozen=True)
class Subject:
    """A shipped model, the data it was trained on, and the inverses that are quickest to train: those of the paper have
    its structure and take longer. ``share`` is its part of the time, ``page`` its folder."""

    model: str
    data: str
    inverses: tuple[str, ...]
    share: float
    page: str


SUBJECTS = (
    Subject(
        "zoo/detr-prior",
        "world:prior",
        (
            "backbone=deconvolution:expansion=1,head=4",
            "encoder=blocks:depth=2,heads=4,mlp_ratio=2,start=ridge",
            "decoder=decoder:depth=2,heads=4,feedforward=256",
        ),
        0.8,
        ".",
    ),
    Subject(
        "zoo/vit-prior",
        "world:prior:single",
        ("backbone=ridge", "encoder=blocks:depth=1,heads=4,mlp_ratio=2,start=ridge"),
        0.2,
        "vit",
    ),
)


def demo(out: str | Path = "demo", *, minutes: float = 1.2, seeds: int = 1, seed: int = 0) -> list[Path]:
    """Reconstruct images never seen, first with the shipped inverses, then with new ones that are trained here, and
    measure both.

    Args:
        out: the folder for ``report.html`` and ``results.json`` of the detector, the same for the classifier in
            ``vit/``, both again for the shipped inverses in ``shipped/``, and the runs in ``runs/``. An earlier demo
            there is replaced.
        minutes: training time in all; 0 shows what the shipped inverses give, and trains nothing.
        seeds: instances of every inverse.
        seed: the first of them.

    Returns:
        The pages of the new inverses, or of the shipped ones where none were trained; a line tells where those of the
        shipped ones are as soon as they are there.

    Raises:
        UserError: something else lies in ``out`` where the pages or the runs go.
    """
    if not 0 <= minutes < math.inf:
        raise UserError(f"--minutes is {minutes:g}: it has to be 0 or more, and finite")
    TrainOptions(seeds=seeds, seed=seed)  # refused before anything is shown
    out = Path(out)
    for subject in SUBJECTS:
        _check(subject, out)
    models = {subject: load_model(subject.model) for subject in SUBJECTS}
    shown = []
    for subject, model in models.items():
        ensemble = ChainEnsemble.from_pretrained(subject.model)
        page = _show(subject, model, ensemble, ensemble.folder or subject.model, out / "shipped" / subject.page)
        logger.info("%s: what the shipped inverses give", page)
        shown.append(page)
    if not minutes:
        return shown
    pages = []
    for subject, model in models.items():
        given = subject.share * minutes
        logger.info("%s: training %d seeds of every inverse for %.1f minutes", subject.model, seeds, given)
        run, settings = _run_folder(subject, out), _settings(subject)
        settings |= {"minutes": given, "seeds": seeds, "seed": seed}
        ensemble = train(model, out=run, overwrite=True, **settings)
        pages.append(_show(subject, model, ensemble, run, out / subject.page))
    return pages


def _settings(subject: Subject) -> dict[str, Any]:
    """The options that every run of a demo has, by which it is known again."""
    own = {"data": subject.data, "inverse": subject.inverses, "batch_size": 16}
    return {**own, "max_validation": min(100, MEASURED), "max_test": MEASURED, "tracker": "none"}


def _run_folder(subject: Subject, out: Path) -> Path:
    return out / "runs" / subject.model.removeprefix("zoo/")


def _check(subject: Subject, out: Path) -> None:
    """Refuse to replace what no demo has made."""
    for page in (out / "shipped" / subject.page, out / subject.page):
        check_output(page)
    run = RunFolder(_run_folder(subject, out))
    run.check(resume=False, overwrite=True)
    had = run.config()
    made = {"model": subject.model, **_settings(subject), "inverse": list(subject.inverses)}
    if had and any({**had.get("options", {}), "model": had["model"]["name"]}.get(name) != made[name] for name in made):
        raise UserError(f"{run.path} holds a run that is no demo's: choose another --out")


def _show(subject: Subject, model: StagedModel, ensemble: ChainEnsemble, run: str | Path, page: Path) -> Path:
    test = open_data(subject.data, model.pixels).test
    write_results(run, model, ensemble, collate([test[index] for index in range(SHOWN)]), page)
    return page / "report.html"

"""The main job, on the models that ship with the package."""

from __future__ import annotations

import logging
from pathlib import Path

from backsight.core import Pixels, UserError
from backsight.data import Batch, collate, open_data
from backsight.models import load_model
from backsight.report import Results, write_report
from backsight.report.reconstruct import results_of
from backsight.train import RunFolder, train

logger = logging.getLogger(__name__)

MODELS = {"detr": "zoo/detr-prior", "vit": "zoo/vit-prior"}
"""The detector's page is the demo's own; the classifier's lies beside it in ``vit/``."""
DATA = "world:prior"
SHOWN = 12
"""Pictures on a page."""


def demo(
    out: str | Path = "demo", *, minutes: float = 1.5, seeds: int = 2, seed: int = 0, overwrite: bool = True
) -> dict[str, Results]:
    """Train inverses of the shipped models from nothing, reconstruct images never seen, measure, and write the pages.

    Args:
        out: the folder for ``report.html``, ``results.json``, and the runs.
        minutes: training time for each of the models.
        seeds: instances of every inverse.
        seed: the first of them.
        overwrite: replace an earlier demo there.

    Returns:
        The results by model: ``detr``, ``vit``.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out names a folder")
    results = {}
    for name, zoo_name in MODELS.items():
        model = load_model(zoo_name)
        run = out / "runs" / name
        if not overwrite:
            RunFolder(run).check(resume=False, overwrite=False)
        logger.info("%s: training %d seeds of every inverse for %g minutes", zoo_name, seeds, minutes)
        ensemble = train(
            model, data=DATA, out=run, minutes=minutes, seeds=seeds, seed=seed, overwrite=overwrite, max_test=500,
            tracker="none",
        )  # fmt: skip
        page = out if name == "detr" else out / name
        results[name] = results_of(run, model, ensemble, _test_images(model.pixels), page)
        results[name].save(page)
        write_report(results[name], page / "report.html")
    return results


def _test_images(pixels: Pixels) -> Batch:
    """The first pictures of the test split."""
    test = open_data(DATA, pixels).test
    return collate([test[index] for index in range(SHOWN)])

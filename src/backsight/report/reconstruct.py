"""A user's own pictures, from every stage: the pictures, their errors, and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsight.chain import ChainEnsemble
from backsight.chain.model import open_forward_model
from backsight.core import Classes, Detections, valid_sizes
from backsight.data import Batch, find_pictures, load_images, read_image
from backsight.devices import choose_device
from backsight.engine import RANDOM, Prediction, StagedModel, Trace
from backsight.evaluation import evaluate
from backsight.experiments.mean_image import MeanImage
from backsight.experiments.subject import training_mean
from backsight.figures import draw_detections, grid, to_png
from backsight.io import read_json, write_bytes
from backsight.report.output import check_output, drop_pictures, pictures_of
from backsight.report.page import write_report
from backsight.report.results import INPUT, DataCard, ModelCard, PictureRow, Results, StageErrors, save_pictures
from backsight.shipped import shipped_card
from backsight.training import RunFolder, command

AT_ONCE = 8
"""Pictures that go through the model together."""
THRESHOLD = 0.5
"""The least score of a detection that is drawn."""


def reconstruct(
    run: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    model: StagedModel | str | None = None,
    device: str = "auto",
    strict: bool = False,
) -> Results:
    """Reconstruct pictures from every stage and seed of a run, and write them, ``results.json`` and ``report.html``.

    Args:
        run: the folder of a run, or of one chain.
        images: picture files; a folder stands for the pictures in it.
        out: the folder to write to; what an earlier call wrote there is replaced once the new pictures are there.
        model: the forward model, or its name, where that which the run keeps leads to it no more.
        device: where to compute.
        strict: fail at a picture that cannot be read, instead of leaving it out.

    Raises:
        UserError: no chain there, no picture that can be read, the forward model is not to be had any more, or
            something else lies in ``out`` (:func:`~backsight.report.output.check_output`).
    """
    out = Path(out)
    check_output(out, images)
    ensemble = ChainEnsemble.from_pretrained(run)
    find_pictures(images)  # a path that is wrong is told before the model is loaded
    _of_the_run(ensemble.folder or run)  # a damaged file is told before anything is computed
    model = open_forward_model(ensemble, choose_device(device), model)
    batch = load_images(images, model.pixels, strict=strict)
    return write_results(ensemble.folder or run, model, ensemble, batch, out)


def write_results(run: str | Path, model: StagedModel, ensemble: ChainEnsemble, batch: Batch, out: Path) -> Results:
    """The pictures of ``batch`` and the run's errors on its test images, as files in ``out``.

    These are the pictures, ``figure.png`` (the same for print), ``results.json`` and ``report.html``. A chain that
    comes without its run is measured on ``batch`` itself.
    """
    earlier = pictures_of(out)
    parts = [batch.part(start, start + AT_ONCE) for start in range(0, len(batch.ids), AT_ONCE)]
    rows = [row for part in parts for row in _rows(model, ensemble, part.to(model.device), out)]
    results = _results(run, model, _measured(run, model, ensemble, batch), rows)
    results.save(out)  # before the figure: by it the folder is known as ours
    drop_pictures(out, earlier, rows)
    _print_figure(rows, out, "random weights" if model.weights == RANDOM else "")
    write_report(results, out / "report.html")
    return results


def _results(run: str | Path, model: StagedModel, measured: Mapping[str, Any], rows: list[PictureRow]) -> Results:
    card = measured["card"]
    return Results(
        title=f"Through the eyes of {model.name}",
        command=command(),
        model=_model_card(model),
        data=DataCard(
            name=card["data"],
            split="test",
            num_images=measured["num_images"],
            fingerprint=card["data_fingerprint"],
            size=model.pixels.size,
            fit=model.pixels.fit,
            skipped=card["unreadable_images_skipped"],
        ),
        card={name.replace("_", " "): value for name, value in card.items()},
        stages=[_stage(entry, found) for entry, found in measured["entries"].items()],
        mean_image=measured["mean_image"],
        pictures=rows,
        curves=list(_curves(run)),
    )


@torch.no_grad()
def reconstruct_all(
    model: StagedModel, ensemble: ChainEnsemble, images: Tensor, valid: Tensor | None = None
) -> tuple[Trace, dict[str, Tensor]]:
    """One forward pass of ``B 3 H W``, and its reconstructions by entry, ``S B 3 H W`` in [0, 1]."""
    trace = model.run(images, valid=valid)
    return trace, {entry: ensemble.reconstruct(trace, entry).clamp(0, 1) for entry in ensemble.entries}


def _rows(model: StagedModel, ensemble: ChainEnsemble, batch: Batch, out: Path) -> list[PictureRow]:
    """The images of ``batch``, all that is shown of them cut to their valid part."""
    trace, found = reconstruct_all(model, ensemble, batch.images, batch.valid)
    answers = _answers(model, trace)
    whole = [model.pixels.size] * len(batch.ids)
    rows = []
    for index, (high, wide) in enumerate(whole if batch.valid is None else valid_sizes(batch.valid)):
        drawn, caption = _told(batch.images[index, :, :high, :wide], answers[index])
        pictures = {INPUT: [drawn], **{entry: list(seeds[:, index, :, :high, :wide]) for entry, seeds in found.items()}}
        rows.append(save_pictures(out, batch.ids[index], caption, pictures))
    return rows


def _answers(model: StagedModel, trace: Trace) -> Sequence[Any]:
    if model.spec.task == "features":
        return [None] * len(trace.images)
    answer: Prediction = model.predict(trace)
    return [Classes(logits, answer.labels) for logits in answer.logits] if isinstance(answer, Classes) else answer


def _told(image: Tensor, answer: Classes | Detections | None) -> tuple[Tensor, str]:
    """The picture with the model's detections drawn on it, and its answer in words."""
    if isinstance(answer, Detections):
        sure = answer.above(THRESHOLD)
        names = [_name(sure.labels, int(each)) for each in sure.classes]
        return draw_detections(image.cpu(), sure, THRESHOLD), f"detects {', '.join(names) or 'nothing'}"
    if isinstance(answer, Classes):
        probability, top = answer.logits.softmax(-1).max(-1)
        return image.cpu(), f"says {_name(answer.labels, int(top))} ({probability:.0%})"
    return image.cpu(), ""


def _name(labels: Mapping[int, str], label: int) -> str:
    return labels.get(label, f"class {label}")


def _measured(run: str | Path, model: StagedModel, ensemble: ChainEnsemble, batch: Batch) -> dict[str, Any]:
    """The errors that the run itself measured, else those on ``batch``."""
    own = _of_the_run(run)
    if own is not None:
        return own
    mean, batch = training_mean(Path(run)), batch.to(model.device)
    card = {"data": "the pictures below", "data_fingerprint": "", "unreadable_images_skipped": 0}
    if mean is not None:
        return {**evaluate(model, ensemble, [batch], mean.to(model.device)).as_json(), "card": card}
    own, alone = MeanImage.over([batch]), len(batch.ids) == 1
    found = evaluate(model, ensemble, [batch], batch.images[0] if alone else own.against(batch)).as_json()
    if alone:  # a picture is its own mean, whose error says nothing
        found["mean_image"] = dict.fromkeys(found["mean_image"])
    return {**found, "card": {**card, "mean_image": "of the pictures below, its errors corrected for this"}}


def _of_the_run(run: str | Path) -> dict[str, Any] | None:
    """The errors that a run measured, None where there are none.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(run) / "evaluation.json"
    mend = "restore it, or remove it to measure on your pictures"
    return read_json(path, mend, ("num_images", "mean_image", "entries", "card")) if path.is_file() else None


def _curves(run: str | Path) -> Iterator[dict[str, Any]]:
    """The training losses of a run, one record for every reading of every inverse."""
    for record in RunFolder(run).metrics():
        for name, loss in record.get("losses", {}).items():
            seed, _, entry = name.partition("/")
            yield {"step": record["step"], "entry": entry, "seed": int(seed), "loss": loss}


def _model_card(model: StagedModel) -> ModelCard:
    height, width = model.pixels.size
    details = {"family": model.spec.family, "stages": ", ".join(model.stages), "image size": f"{height} x {width}"}
    figures = dict(shipped_card(model.name).get("figures", {}))
    if figures:
        num = figures.pop("images")
        details["test figures"] = (
            ", ".join(f"{name} {value:.3f}" for name, value in figures.items()) + f" on {num} scenes"
        )
    return ModelCard(model.name, model.weights, model.weights == RANDOM, details, figures)


def _stage(entry: str, found: Mapping[str, Any]) -> StageErrors:
    metrics = {name: found[name] for name in ("mse", "psnr", "ssim")}
    intervals = {name: tuple(bounds) for name, bounds in found["interval"].items() if name in metrics}
    return StageErrors(entry, metrics, intervals, found["layer_error"])


def _print_figure(rows: Sequence[PictureRow], out: Path, warning: str) -> None:
    """``figure.png``: the first pictures beside their reconstructions by the first seed, for print."""
    shown = rows[:6]
    columns = list(shown[0].images)
    pictures = [[read_image(out / row.images[column][0]).float() / 255 for column in columns] for row in shown]
    titles = [column if column == INPUT or not warning else f"{column}, {warning}" for column in columns]
    figure = grid(pictures, titles, [Path(row.id).name for row in shown])
    write_bytes(out / "figure.png", to_png(figure))

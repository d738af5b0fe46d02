"""A user's own pictures, from every stage: the pictures, their errors, and the page."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsight.arrange import each_tensor
from backsight.chain import ChainEnsemble
from backsight.chain.model import open_forward_model
from backsight.core import Key, UserError, entry_title
from backsight.data import Batch, find_pictures, load_images
from backsight.devices import choose_device
from backsight.distributed import Processes, joined
from backsight.engine import RANDOM, StagedModel, Trace
from backsight.evaluation import MeanImage, evaluate
from backsight.experiments.reconstruct import DETECTED, DIFFER, PLAIN, SEEDS, show, spread_map, unlike_lines
from backsight.experiments.subject import trained_on, training_mean
from backsight.figures import image_png, pages, picture_part, text_part, to_png
from backsight.io import read_json, write_bytes
from backsight.old_results import convert
from backsight.report.render import write_report
from backsight.results import FORMAT, INPUT, TRAINING_LOSS, Label, Measurement, Picture, PictureFile, Result
from backsight.shipped import shipped_card
from backsight.training import RunFolder, command
from backsight.training.checkpoints import from_main
from backsight.training_range import Distances, TrainingRange, unlike_in_words
from backsight.validation import AnyNumber, check_folder
from backsight.validation import convert as convert_value
from backsight.weak_inverses import weak_in_words, weak_inverses

logger: logging.Logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Pictures that go through the model together."""

PICTURE = re.compile(r"pictures/[a-z0-9-]*-[0-9a-f]{8}/[a-z0-9-]*-[0-9a-f]{8}\.\d+\.png")
"""The names that :func:`picture_file` gives."""

RESULTS = "results.json"


def reconstruct(
    run: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    model: StagedModel | str | None = None,
    device: str = "auto",
    strict: bool = False,
    draws: int = 0,
) -> Result:
    """Reconstruct pictures from every stage and seed of a run, and write them, ``results.json`` and ``report.html``.

    Args:
        run: the folder of a run, or of one chain.
        images: picture files; a folder stands for the pictures in it.
        out: the folder to write to; what an earlier call wrote there is replaced once the new pictures are there.
        model: the forward model, or its name, where that which the run keeps leads to it no more.
        device: where to compute.
        strict: fail at a picture that cannot be read, instead of leaving it out.
        draws: how many draws to show under each picture, and a map of where they differ, from inverses that sample.

    Raises:
        UserError: no chain there, no picture that can be read, the forward model is not to be had any more, draws of a
            chain in which no inverse samples, or something else lies in ``out`` (:func:`check_output`).
    """
    out = Path(out)
    convert_value(draws, AnyNumber, "--draws")
    with joined(device) as processes:
        processes.from_main(lambda: check_output(out, images))
        ensemble = _open_ensemble(run, draws)
        processes.from_main(lambda: find_pictures(images))  # a wrong path is reported before the model is loaded
        _errors_of(ensemble.folder or run)  # a damaged file is reported before anything is computed
        model = open_forward_model(ensemble, choose_device(device), model)
        batch = from_main(processes, partial(load_images, images, model.pixels, strict=strict))
        return write_results(ensemble.folder or run, model, ensemble, batch, out, draws, processes)


def _open_ensemble(run: str | Path, draws: int) -> ChainEnsemble:
    """The chains of ``run``, from which ``draws`` can be taken, if any."""
    ensemble = ChainEnsemble.from_pretrained(run)
    if draws and not any(map(ensemble.chains[0].samples, ensemble.chains[0].entries)):
        raise UserError(
            f"no inverse of {run} samples: leave out --draws, or train some, as --inverse encoder@flow=flow"
        )
    return ensemble


@torch.no_grad()
def write_results(
    run: str | Path,
    model: StagedModel,
    ensemble: ChainEnsemble,
    batch: Batch,
    out: Path,
    draws: int = 0,
    processes: Processes = Processes(),  # noqa: B008  (frozen)
) -> Result:
    """The pictures of ``batch`` and the run's errors on its test images, as files in ``out``.

    These are the pictures, ``figure.png`` (the same for print), ``results.json`` and ``report.html``. A chain that
    comes without its run is measured on ``batch`` itself. Several processes pass a part of the images each; the main
    one writes.
    """
    earlier = processes.from_main(lambda: _written_before(out))
    known, data = TrainingRange.beside(ensemble), trained_on(ensemble)
    found: list[Distances] = []
    pictures: list[PictureFile] = []
    own = _own_batches(batch, model.device, processes)
    for _ in range(0, len(batch.ids), AT_ONCE * processes.count):
        look = partial(_look, model, ensemble, next(own, None), known, draws)
        for distances, files in processes.gathered(look):
            found += distances
            for name, (labels, content) in files.items():
                if processes.main:
                    write_bytes(out / name, content)
                pictures.append(PictureFile(labels, out, name))
    errors = _errors_of(run) or _measure(model, ensemble, batch, processes)
    unlike = unlike_in_words(batch.ids, Distances.joined(found), data) if found else ""
    weak = weak_inverses(ensemble)
    notes = [*filter(None, [unlike]), *weak_in_words(weak)]
    card = {**errors.subjects[0], "model": model.name, "weights": model.weights, "random": model.weights == RANDOM}
    card |= {"family": model.spec.family, "stages": model.stages}
    card |= {"size": list(model.pixels.size), "fit": model.pixels.fit}
    card |= {"figures": dict(shipped_card(model.name).get("figures", {})), "weak": weak}
    card |= {} if data is None else {"trained_on": data}
    measurements = [*errors.measurements, *_losses(run, model.name)]
    result = Result("reconstruct", [card], measurements, pictures, notes=[*errors.notes, *notes], command=command())

    def write() -> Result:
        # Before the figure: by it the folder is known as ours. The page is made from the file, as `backsight report`
        # does.
        written = Result.load(result.write(out / RESULTS))
        _drop(out, set(earlier) - {each.file for each in pictures})
        write_bytes(out / "figure.png", to_png(_figure(pictures, "random weights" if card["random"] else "", notes)))
        write_report(written, out / "report.html")
        for note in notes:
            logger.warning(note)
        return written

    return processes.from_main(write)


def _own_batches(batch: Batch, device: torch.device, processes: Processes) -> Iterator[Batch]:
    """Every so-many-th batch of :data:`AT_ONCE` images: those that this one of the ``processes`` passes."""
    for start in range(processes.rank * AT_ONCE, len(batch.ids), processes.count * AT_ONCE):
        yield batch.part(start, start + AT_ONCE).to(device)


def _look(
    model: StagedModel, ensemble: ChainEnsemble, batch: Batch | None, known: TrainingRange | None, draws: int
) -> tuple[list[Distances], dict[str, tuple[Mapping[str, Label], bytes]]]:
    """How far the images of a batch are from the training data, if that is known, and by the names of their files:
    labels and contents of the input of each image, with detections drawn on it, of its reconstructions, and of its
    draws in rows of their own."""
    if batch is None:
        return [], {}
    trace = model.run(batch.images, valid=batch.valid)
    distances = None if known is None else known.distances_of(ensemble, trace)
    images = {entry: ensemble.reconstruct(trace, entry).clamp(0, 1) for entry in ensemble.entries}
    far = None if distances is None else distances.farthest.tolist()
    seeds = [chain.seed for chain in ensemble.chains]
    found = list(show(model, batch, trace, images, seeds, [SEEDS], distances=far))
    input_row = DETECTED if any(each.labels["row"] == DETECTED for each in found) else PLAIN
    if draws:
        found = list(_with_draws(ensemble, batch, trace, found, input_row, draws))
    numbers: dict[tuple[str, str], int] = {}
    files: dict[str, tuple[Mapping[str, Label], bytes]] = {}
    for each in found:
        place = str(each.labels["image"]), str(each.labels["stage"])
        if place[1] == INPUT and each.labels["row"] != input_row:
            continue
        numbers[place] = numbers.get(place, -1) + 1
        files[picture_file(*place, numbers[place])] = each.labels, image_png(each.image)
    return [] if distances is None else [each_tensor(distances, Tensor.cpu)], files


def _with_draws(
    ensemble: ChainEnsemble, batch: Batch, trace: Trace, found: Sequence[Picture], input_row: str, num: int
) -> Iterator[Picture]:
    """The pictures of each image, then its draws: rows ``NAME, draw 1``, ... of the same columns, and one of where they
    differ. What does not sample is the same in all of them."""
    drawing = ensemble.drawing
    drawn = {entry: _draws(drawing, trace, entry, num) for entry in ensemble.entries}
    for index, name in enumerate(batch.ids):
        own = [each for each in found if each.labels["image"] == name]
        yield from own
        (shown,) = [each for each in own if each.labels["stage"] == INPUT and each.labels["row"] == input_row]
        rows = [f"draw {number + 1}" for number in range(num)] + ([DIFFER] if num > 1 else [])
        for number, row in enumerate(rows):
            labels = {"model": shown.labels["model"], "image": f"{name}, {row}"}
            yield Picture({**labels, "stage": INPUT, "row": input_row}, shown.image)
            for entry, seeds in drawn.items():
                for chain, draws in zip(drawing.chains, seeds[:, :, index], strict=True):
                    picture = batch.cut(index, draws[number] if number < num else spread_map(draws)).cpu()
                    yield Picture({**labels, "stage": entry, "row": f"seed {chain.seed}"}, picture)


def _draws(ensemble: ChainEnsemble, trace: Trace, entry: str, num: int) -> Tensor:
    """``S draws B 3 H W`` from an entry, wherever anything on its way samples; else its reconstruction."""
    chain = ensemble.chains[0]
    if any(map(chain.samples, chain.path(entry, via=chain.samplers()))):
        return ensemble.sample(trace, entry, draws=num)
    return ensemble.reconstruct(trace, entry).clamp(0, 1)[:, None].expand(-1, num, -1, -1, -1, -1)


def picture_file(image: str, stage: str, seed: int = 0) -> str:
    """Where the picture of an image goes, relative to the folder. The id of an image may be anything, a path too."""
    return f"pictures/{_file_name(image)}/{_file_name(stage)}.{seed}.png"


def _file_name(text: str) -> str:
    """A short name that every file system takes; the digest keeps names apart whose letters look alike."""
    letters = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:40]
    return f"{letters}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _errors_of(run: str | Path) -> Result | None:
    """The errors that a run measured on its test images, None where there are none.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(run) / "evaluation.json"
    return Result.load(path) if path.is_file() else None


def _measure(model: StagedModel, ensemble: ChainEnsemble, batch: Batch, processes: Processes) -> Result:
    """The errors on the pictures themselves."""
    mean = training_mean(ensemble)
    baseline = MeanImage.over([batch]) if mean is None else MeanImage(mean)
    own = _own_batches(batch, model.device, processes)
    found = evaluate(model, ensemble, own, baseline, gather=processes.gather)
    card: dict[str, Any] = {**found.subjects[0], "data": "the pictures below", "own_pictures": True}
    if mean is None:
        card["mean_image"] = "of the pictures below, its errors corrected for this"
    return replace(found, subjects=[card])


def _losses(run: str | Path, model: str) -> Iterator[Measurement]:
    """The training losses of a run: for each step and inverse a row for each seed."""
    for record in RunFolder(run).metrics():
        losses: dict[str, list[float]] = {}
        for name, loss in record.get("losses", {}).items():
            losses.setdefault(Key.parse(name).entry, []).append(loss)
        for entry, values in losses.items():
            labels = {"model": model, "stage": entry, "metric": TRAINING_LOSS, "step": record["step"]}
            yield Measurement(labels, torch.tensor([values], dtype=torch.float64).T)


def _figure(pictures: Sequence[Picture], warning: str, notes: Sequence[str] = ()) -> Any:
    """The first pictures beside their reconstructions by the first seed, as many as fit on a page, for print."""
    rows: dict[str, dict[str, Picture]] = {}
    for each in pictures:
        rows.setdefault(str(each.labels["image"]), {}).setdefault(str(each.labels["stage"]), each)
    shown = dict(list(rows.items())[:6])
    stages = list(next(iter(shown.values())))
    titles = [entry_title(stage) + (f", {warning}" if warning and stage != INPUT else "") for stage in stages]
    images = [[row[stage].image for stage in stages] for row in shown.values()]
    captions = [[unlike_lines(row[stage]) for stage in stages] for row in shown.values()]
    table = picture_part(images, titles, [Path(name).name for name in shown], captions)
    return pages([*map(text_part, notes), table])[0]


# ---- the folder that pictures go to


def check_output(out: Path, images: Sequence[str | Path] = ()) -> None:
    """Refuse to write where something else than reconstructions lies.

    Args:
        out: the folder to write to; it need not exist.
        images: what is to be reconstructed: files and folders.

    Raises:
        UserError: a file, the folder of a run or a chain, a folder with one of ``images``, or with files that
            would be written over and are not ours.
    """
    check_folder(out, "--out")
    if RunFolder(out).config() or (out / "chain.json").is_file() or any(out.glob("chains/*/chain.json")):
        raise UserError(f"{out} is the folder of a run: choose another --out for what is seen through it")
    place = Path(os.path.realpath(out))  # other than Path.resolve, it goes through a loop of links
    for image in images:
        real = Path(os.path.realpath(image))
        if place in (real, *real.parents):
            raise UserError(f"{image}, which is to be reconstructed, lies in {out}: choose another --out")
    if foreign := _not_ours(out):
        raise UserError(f"{out} has a '{foreign}' that no reconstruction wrote: choose another --out")


def _not_ours(out: Path) -> str | None:
    """What would be written over, and no earlier call has written."""
    if (out / RESULTS).exists():
        try:
            _written_before(out)
        except (UserError, ValueError, KeyError, TypeError, AttributeError):
            return RESULTS
        return None
    strange = next((name for name in ("report.html", "figure.png") if (out / name).exists()), None)
    pictures = [path for path in (out / "pictures").rglob("*") if not path.is_dir()]
    known = all(PICTURE.fullmatch(path.relative_to(out).as_posix()) for path in pictures)  # of an interrupted call
    return strange or (None if known else "pictures")


def _written_before(out: Path) -> set[str]:
    """The pictures that ``results.json`` in ``out`` names, none where there is none.

    Raises:
        UserError: it is no result.
    """
    if not (out / RESULTS).is_file():
        return set()
    content: Mapping[str, Any] = convert(read_json(out / RESULTS, "choose another --out"))
    if content.get("format") != FORMAT:
        raise UserError(f"{out / RESULTS} is no result of backsight")
    files = {each.get("file", "") for each in content["pictures"]}
    return {file for file in files if PICTURE.fullmatch(file)}  # a name that we do not give leads somewhere else


def _drop(out: Path, files: set[str]) -> None:
    """Remove pictures of an earlier call, and the folders that are empty then."""
    for name in files:
        (out / name).unlink(missing_ok=True)
        with suppress(OSError):  # it holds other pictures
            (out / name).parent.rmdir()

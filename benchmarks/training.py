"""Training against the reference loop: images a second, decoding included and excluded, one seed and several."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from backsight.data import Batch, open_data
from backsight.engine import StagedModel
from backsight.options import TrainOptions
from backsight.training import Loop, Run, RunFolder
from benchmarks.apart import Apart
from benchmarks.measure import Ratio, Side, Spent, alternate, quotients
from benchmarks.photos import write_photos
from benchmarks.reference import Reference
from benchmarks.settings import TRUE_SIZE, Settings

SCRIPTS, PASS = "script per component", "one pass"
"""The two protocols of the reference loop."""


def measure(settings: Settings) -> list[Ratio]:
    """Images a second of ours, as multiples of the reference loop's."""
    found: list[Ratio] = []
    for name in settings.chosen(TRUE_SIZE):
        with tempfile.TemporaryDirectory() as folder:
            found += _measure(name, settings, Path(folder))
    return found


def _measure(name: str, settings: Settings, folder: Path) -> list[Ratio]:
    model = settings.open(name)
    data = settings.data or photos(model, settings, folder)
    runs = {seeds: open_run(model, settings, data, folder / str(seeds), seeds) for seeds in {1, settings.seeds}}
    ours: dict[str, Side] = {f"ours {seeds}": Steps(run, settings.steps) for seeds, run in runs.items()}
    with Apart(open_reference, name, settings, data, device=settings.device) as reference:
        theirs: dict[str, Side] = {
            SCRIPTS: reference.side("script_per_component", settings.steps),
            PASS: reference.side("all_components", settings.steps),
        }
        spent = alternate(theirs | ours, settings.rounds, settings.device)
    images = settings.steps * settings.batch_size
    return [
        _ratio(name, protocol, seeds, decoding, spent, images)
        for seeds in sorted(runs)
        for protocol in (PASS, SCRIPTS)
        for decoding in (False, True)
    ]


def _ratio(name: str, protocol: str, seeds: int, decoding: bool, spent: dict[str, list[Spent]], images: int) -> Ratio:
    """Seeds of the reference are runs of their own that share nothing: their time is that of one, so many times."""
    seconds = {
        side: [each.wall if decoding else each.working for each in spent[side]] for side in (protocol, f"ours {seeds}")
    }
    theirs, ours = [seeds * each for each in seconds[protocol]], seconds[f"ours {seeds}"]
    cpu = [[each.cpu * times for each in spent[side]] for side, times in ((protocol, seeds), (f"ours {seeds}", 1))]
    words = "with decoding" if decoding else "steps alone"
    return Ratio(
        f"train/{name}/{seeds} seed{'s' * (seeds > 1)}/{protocol}/{words}",
        quotients(theirs, ours),
        "seconds of the reference loop for an image through all inverses and seeds, over ours",
        amounts={
            "reference images/s": images / median(theirs),
            "our images/s": images / median(ours),
            "ratio in CPU seconds": median(quotients(*cpu)),
        },
    )


def photos(model: StagedModel, settings: Settings, folder: Path) -> str:
    """A data specification of made photos, so many that a run of ours does not come to the end of its epoch."""
    count = settings.batch_size * settings.steps * (settings.rounds + 2)
    for seed, (part, number) in enumerate({"train": count, "val": 2, "test": 2}.items()):
        write_photos(folder / "photos" / part, number, model.pixels.size, seed)
    return f"folder:{folder / 'photos'}"


def open_reference(name: str, settings: Settings, data: str) -> Reference:
    """The reference loop on the same images."""
    model = settings.open(name)
    return Reference(model, open_data(data, model.pixels, seed=TrainOptions.seed).train, settings.batch_size)


def open_run(model: StagedModel, settings: Settings, data: str, folder: Path, seeds: int) -> Run:
    """A run of ours, ready for its first batch; it writes nothing."""
    options = TrainOptions(
        data=data,
        out=folder,
        steps=10**9,
        seeds=seeds,
        batch_size=settings.batch_size,
        recipe="paper",  # as the reference loop
        precision=settings.precision,
        tracker="none",
    )
    return Run(model, options, RunFolder(folder))


class Steps:
    """Some batches of a run of ours: a call trains on the next ones."""

    def __init__(self, run: Run, steps: int) -> None:
        self.loop: Loop = run.loop()
        self.steps = steps
        self._batches = self._endless(run)

    def __call__(self) -> float:
        """The next batches; the seconds of waiting for their images."""
        waiting = 0.0
        for _ in range(self.steps):
            start = time.perf_counter()
            batch = next(self._batches)
            waiting += time.perf_counter() - start
            self.loop.step(batch)
        return waiting

    @staticmethod
    def _endless(run: Run) -> Iterator[Batch]:
        number = 0
        while True:
            yield from (batch for batch in run.epoch(number, 0) if len(batch.ids) == run.options.batch_size)
            number += 1

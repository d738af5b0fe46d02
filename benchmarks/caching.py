"""Features from disk against those from the forward model, and after how many epochs keeping them has paid."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from backsight.data import Batch, Target
from backsight.devices import autocast, choose_precision
from backsight.engine import StagedModel
from backsight.training.feature_cache import FeatureCache
from benchmarks.measure import Ratio, Side, quotients, seconds
from benchmarks.settings import TRUE_SIZE, Settings


def measure(settings: Settings) -> list[Ratio]:
    """Reading over computing, and computing with keeping over computing alone."""
    return [ratio for name in settings.chosen(TRUE_SIZE) for ratio in _measure(name, settings)]


def _measure(name: str, settings: Settings) -> list[Ratio]:
    model, device = settings.open(name), settings.device
    images = torch.rand(settings.batch_size, 3, *model.pixels.size, device=device)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        cached = _Cached(model, images, Path(folder))
        sides: dict[str, Side] = {
            "forward": lambda: model.features(images, model.stages),
            "forward and keep": cached.fill,
            "read": cached.read,
        }
        with autocast(choose_precision(settings.precision, device), device):
            plain, filling, reading = seconds(sides, settings.rounds, device).values()
        size = sum(path.stat().st_size for path in Path(folder, "kept").rglob("*.safetensors")) / len(images)
    extra, saved = median(filling) - median(plain), median(plain) - median(reading)
    return [
        Ratio(
            f"cache/{name}/read",
            quotients(plain, reading),
            "seconds of a forward pass, over those of reading what it gives",
            amounts={
                "forward images/s": len(images) / median(plain),
                "read images/s": len(images) / median(reading),
                "kB an image": size / 1e3,
                **({"epochs until it has paid": 1 + max(0.0, extra) / saved} if saved > 0 else {}),
            },
        ),
        Ratio(
            f"cache/{name}/keep",
            quotients(filling, plain),
            "seconds of a forward pass whose features are kept, over those of one without",
            "lower",
        ),
    ]


class _Cached:
    """One batch whose features are kept anew by every :meth:`fill`, and were kept before every :meth:`read`."""

    def __init__(self, model: StagedModel, images: Tensor, folder: Path) -> None:
        self.model, self.folder, self.turn = model, folder, 0
        self.batch = Batch(images, tuple(map(str, range(len(images)))), tuple(Target() for _ in images))
        self.kept = FeatureCache(model, folder / "kept", model.stages, "images", 1e12)
        self._over(self.kept)

    def fill(self) -> None:
        """The first epoch."""
        self.turn += 1
        self._over(FeatureCache(self.model, self.folder / str(self.turn), self.model.stages, "images", 1e12))

    def read(self) -> None:
        """A later one."""
        self._over(self.kept)

    def _over(self, cache: FeatureCache) -> None:
        for batch in cache.over([self.batch]):
            cache.features(batch.images, self.model.stages)

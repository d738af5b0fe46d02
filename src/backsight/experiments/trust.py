"""How far a reconstruction may be believed: what the forward model itself sees in it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from backsight.core import UserError
from backsight.data import Batch
from backsight.experiments.drawing import lines_of
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject, baseline_notes, by_seed
from backsight.figures import Pages, Panel, pages, panel_part
from backsight.metrics import mse
from backsight.results import INPUT, MEAN_IMAGE, Measurement, Result

RECONSTRUCTION = "reconstruction"
"""What is shown to the forward model again, as are the mean image and the input."""


def measure(subject: Subject) -> Result:
    """Each reconstruction is given to the forward model again, and its features at the stage are compared.

    An inverse that paints what it has learned of all images, and not what the features say, makes pictures whose own
    features are those of another image. Its low pixel error does not show that; this does. Metrics, for each stage:

    - ``distance``: from the features of the picture to those of the original, in units of the mean distance between
      the original's and those of all other images: 0 the same, 1 like another image.
    - ``rank``: of the original among all images, by the distance of their features to the picture's: 1 is the nearest,
      ``(images + 1) / 2`` chance.
    - ``found``: 1 where the original is the nearest, else 0; chance is ``1 / images``.
    - ``seed spread``: mean squared difference between the reconstructions of two seeds, ``mean image distance``: that
      of a reconstruction to the mean image; both in units of the images' own to the mean image (0 the same, 1 as
      far as an image is).

    Labels: ``model``, ``stage``, ``metric``, ``of``: the ``reconstruction``, and for the first three the ``mean
    image`` (what an inverse shows that knows nothing) and the ``input`` itself (distance 0, rank 1), one row each.

    Raises:
        UserError: the subject has fewer than two images: there is no other to compare with.
    """
    if subject.num_images < 2:
        raise UserError(f"trust compares images with each other, {subject.name} has one: give it two or more")
    notes = [f"{subject.name} has one seed: there is no spread between seeds"] if len(subject.seeds) == 1 else []
    notes += baseline_notes(subject)
    return subject.result("trust", [*_seen_again(subject), *_pixels(subject)], notes=notes)


@torch.no_grad()
def _seen_again(subject: Subject) -> Iterator[Measurement]:
    for stage in subject.stages:
        originals = torch.cat([subject.trace(batch)[stage].flatten(1).float() for batch in subject.batches])
        pictures = {
            RECONSTRUCTION: _encode_reconstructions(subject, stage),
            MEAN_IMAGE: _encode_baseline(subject, stage),
            INPUT: originals[None],
        }
        # The mean distance of each image's features to all others'.
        unit = _distances(originals, originals).fill_diagonal_(0).sum(1) / (len(originals) - 1)
        for name, features in pictures.items():
            found = [_compare(each, originals, unit) for each in features]
            for metric in ("distance", "rank", "found"):
                labels = {"stage": stage, "metric": metric, "of": name}
                yield Measurement(labels, torch.stack([each[metric] for each in found]).cpu().double())


def _encode_reconstructions(subject: Subject, stage: str) -> Tensor:
    """The features at ``stage`` of the images that are reconstructed from there, ``S images F``."""
    parts = [[_encode(subject, stage, images) for images in subject.reconstruct(batch, stage)]
             for batch in subject.batches]  # fmt: skip
    return torch.cat([torch.stack(features) for features in parts], 1)


def _encode_baseline(subject: Subject, stage: str) -> Tensor:
    """The features at ``stage`` of what knows nothing of each image, ``1 images F``."""
    if subject.baseline.counts is None:  # the same for all of them
        return _encode(subject, stage, subject.mean_image[None]).expand(1, subject.num_images, -1)
    return torch.cat([_encode(subject, stage, subject.baseline.against(each)) for each in subject.batches])[None]


def _encode(subject: Subject, stage: str, images: Tensor) -> Tensor:
    """The features of ``B 3 H W`` at ``stage``, ``B F``."""
    return subject.model.features(images, [stage])[stage].flatten(1).float()


def _distances(features: Tensor, originals: Tensor) -> Tensor:
    """The distance of each of ``features`` (``images F``) to each of ``originals``, ``images images``.

    By differences, not by products: those lose the distances that are small beside the length of the features.
    """
    return torch.cdist(features, originals, compute_mode="donot_use_mm_for_euclid_dist")


def _compare(features: Tensor, originals: Tensor, unit: Tensor) -> dict[str, Tensor]:
    """The first three metrics of pictures, given their features and the originals' (``images F`` each)."""
    distances = _distances(features, originals)
    own = distances.diagonal()
    nearer = (distances < own[:, None]).sum(1)
    as_near = (distances == own[:, None]).sum(1) - 1
    # Of several at one distance any may come first: each counts for its chance to.
    first = (nearer == 0) / (1 + as_near)
    # Features that are the same for all images have no distance to measure in.
    distance = torch.where(unit > 0, own / unit, torch.nan)
    return {"distance": distance, "rank": 1 + nearer + as_near / 2, "found": first}


def _pixels(subject: Subject) -> Iterator[Measurement]:
    def distances(batch: Batch) -> dict[tuple[str, str], Tensor]:
        mean = subject.mean_image.expand_as(batch.images)
        # How far images are from their mean; where that is their own, distances to it are short by the same share.
        found = {("", "mean image distance"): mse(batch.images, mean)}
        found["", "seed spread"] = mse(batch.images, subject.baseline.against(batch))
        for stage in subject.stages:
            seeds = subject.reconstruct(batch, stage)
            found[stage, "mean image distance"] = by_seed(mse, seeds, mean)
            if len(seeds) > 1:
                found[stage, "seed spread"] = _apart(seeds)
        return found

    found = subject.gather(distances)
    for (stage, metric), values in found.items():
        if stage:
            labels = {"stage": stage, "of": RECONSTRUCTION, "metric": metric}
            yield Measurement(labels, values / found["", metric].mean().clamp(min=1e-12))


def _apart(seeds: Tensor) -> Tensor:
    """The mean squared difference between two seeds, over all pairs of them: ``S B 3 H W`` -> ``B``."""
    return torch.stack([mse(one, other) for one, other in combinations(seeds, 2)]).mean(0)


# ---- the figure


def draw(result: Result) -> Pages:
    """Four panels: the distance and the retrieval of what the model sees in a reconstruction, the mean image beside
    them; and in pixels, how far the seeds agree and how far they leave the mean image."""
    images = {int(subject["num_images"]) for subject in result.subjects}
    chances = {f"chance, {count} images": 1 / count for count in sorted(images)}
    panels = [
        Panel(
            "Features of the reconstruction, seen again: 0 the original's, 1 another image's",
            _with_mean_image(result, "distance"),
            {"another image": 1.0},
        ),
        Panel(
            "Share of reconstructions whose nearest image is their original: 1 all of them",
            _with_mean_image(result, "found"),
            chances,
            top=1.02,
        ),
        Panel(
            "Pixels between two seeds: 0 they agree, 1 as far apart as images are from their mean",
            lines_of(result, metric="seed spread"),
        ),
        Panel(
            "Pixels from the mean image: 0 nothing but the mean is painted, 1 as much as the input has",
            lines_of(result, metric="mean image distance"),
        ),
    ]
    return pages([panel_part([panel for panel in panels if panel.table], columns=2)])


def _with_mean_image(result: Result, metric: str) -> dict:
    """A line for each model, and one for the mean image in its place."""
    lines = lines_of(result, metric=metric, of=RECONSTRUCTION)
    against = lines_of(result, metric=metric, of=MEAN_IMAGE)
    return {**lines, **{f"mean image, shown to {name}": line for name, line in against.items()}}


TRUST = Experiment(
    "trust",
    "How far may a reconstruction be believed?",
    measure,
    draw,
    padded=False,
    reading=(
        "How near the features of the reconstruction are to those of the image, by the forward model itself. Near: "
        "the picture means the same to the model. It does not say that it looks the same to you."
    ),
)

"""Claims about what is left of the image at each stage, and what more of it costs (paper, sec. 4.1 and 4.2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor

from backsight.core import UserError
from backsight.experiments.claims.claim import ANY, CLASSIFIER, DETECTOR, Claim, Comparison, Evidence, for_both
from backsight.experiments.trade_off import BACKWARDS_ONLY, CHAIN, task_metrics
from backsight.experiments.trust import RECONSTRUCTION
from backsight.metrics import ratio
from backsight.results import MEAN_IMAGE, Measurement

_UNIT = "MSE in units of the mean image's"

_KEPT = "share of the gap in SSIM between the mean image and the input"

ERROR = "mse"
"""The metric of a run that says how far its reconstructions are from the images."""


def _error(evidence: Evidence, stage: str, role: int = 0, less: str = "") -> Tensor:
    """The squared error from ``stage``, less that from another stage, over the mean image's: the ratio of two means."""
    values = evidence.values(role, metric="mse", stage=stage)
    if less:
        values = values - evidence.values(role, metric="mse", stage=less)
    return ratio(values, evidence.values(role, metric="mse", stage=MEAN_IMAGE))


def _rise(evidence: Evidence) -> Iterator[Comparison]:
    """From below the mean image's error: that of an inverse that was never trained may rise, too, above it."""
    first = evidence.stages()[0]
    yield Comparison(f"the mean image less {first}", _error(evidence, MEAN_IMAGE, less=first))
    for before, after in pairwise(evidence.stages()):
        yield Comparison(f"{after} less {before}", _error(evidence, after, less=before))


def _apart(evidence: Evidence) -> Iterator[Comparison]:
    for stage in evidence.shared_stages():
        yield evidence.between(stage, _error(evidence, stage), _error(evidence, stage, 1))


def _above_mean_image(evidence: Evidence) -> Iterator[Comparison]:
    for stage in evidence.stages()[evidence.stages().index(evidence.deepest()) :]:
        yield Comparison(f"{stage} less the mean image", _error(evidence, stage, less=MEAN_IMAGE))


def _detail(evidence: Evidence, stage: str, role: int = 0, less: str = MEAN_IMAGE) -> Tensor:
    """How much of the structural similarity that the mean image lacks is there: 1 as in the input, 0 as in that."""
    own, other, floor = (evidence.values(role, metric="ssim", stage=each) for each in (stage, less, MEAN_IMAGE))
    return ratio(own - other, 1 - floor)


def _detail_lost(evidence: Evidence) -> Iterator[Comparison]:
    first, last = evidence.stages()[0], evidence.deepest()
    yield Comparison(f"{first} less {last}", _detail(evidence, first, less=last))


def _more_detail(evidence: Evidence) -> Iterator[Comparison]:
    for stage in evidence.shared_stages():
        yield evidence.between(stage, _detail(evidence, stage), _detail(evidence, stage, 1))


# ---- what a better reconstruction costs: the values of a run are means over its test images, a row for each seed


def _only(found: list[Measurement], what: str) -> Measurement:
    if len(found) > 1:
        names = ", ".join(str(each.labels.get("run", "")) for each in found)
        raise UserError(f"{len(found)} of the runs are {what} ({names}): give one of them")
    if not found:
        raise UserError(f"none of the runs is {what}")
    return found[0]


def _check_images(evidence: Evidence) -> None:
    """Refuse runs whose numbers do not compare."""
    cards = [card for card in evidence.result.subjects if card["model"] == evidence.models[0]]
    if len({(card.get("data_fingerprint"), card.get("num_images")) for card in cards}) > 1:
        raise UserError(f"the runs of {evidence.models[0]} were not measured on the same images: give those that were")


def _classic_less_modular(evidence: Evidence, metric: str) -> Iterator[Comparison]:
    _check_images(evidence)
    classic, modular = (
        _only(evidence.select(task=task, metric=metric), f"{task} and measured its {metric}").values
        for task in ("classic", "modular")
    )
    unit = modular.mean()
    yield Comparison("classic less modular", classic / unit, modular / unit, "")


def _by_lambda(evidence: Evidence, metrics: Sequence[str]) -> Iterator[Comparison]:
    """The largest lambda less the smallest, for each metric and each way that the forward model was updated in."""
    _check_images(evidence)
    groups: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    for each in evidence.select(task="joint"):
        update, metric = (str(each.labels.get(name, CHAIN)) for name in ("update", "metric"))
        if metric in metrics and update != BACKWARDS_ONLY:  # where lambda reaches nothing that is trained
            groups[update, metric].append(each)
    groups = {kind: found for kind, found in groups.items() if len({each.labels["trade_off"] for each in found}) > 1}
    if not groups:
        raise UserError("no two runs of joint training with different lambda")
    for kind, found in groups.items():
        weights = [float(each.labels["trade_off"]) for each in found]
        least, most = (
            _only([each for each in found if each.labels["trade_off"] == end], f"joint with lambda {end:g}").values
            for end in (min(weights), max(weights))
        )
        unit = least.mean() if kind[1] == ERROR else 1
        group = f"{', '.join(kind)}: " if len(groups) > 1 else ""
        what = f"{group}lambda {max(weights):g} less lambda {min(weights):g}"
        yield Comparison(what, most / unit, least / unit, "")


def _task_by_lambda(evidence: Evidence) -> Iterator[Comparison]:
    metrics = task_metrics(evidence.result, evidence.models[0])
    if not metrics:
        raise UserError(f"of no run of {evidence.models[0]} the performance at the task is known")
    yield from _by_lambda(evidence, metrics)


# ---- how far to believe it


def _nearer_than_mean_image(evidence: Evidence) -> Iterator[Comparison]:
    for stage in evidence.stages():
        mean, own = (evidence.values(metric="distance", of=each, stage=stage) for each in (MEAN_IMAGE, RECONSTRUCTION))
        yield Comparison(stage, mean - own)


def _seeds_agree(evidence: Evidence) -> Iterator[Comparison]:
    for stage in evidence.stages():
        yield Comparison(stage, evidence.values(metric="seed spread", stage=stage))


STAGE_CLAIMS = (
    Claim(
        "detr-loses-detail",
        "A detector drops detail on the way to its decoder: the structural similarity of reconstructions falls.",
        "sec. 4.1, Fig. 3",
        "stage_error",
        (DETECTOR,),
        _detail_lost,
        _KEPT,
        least=0.05,
    ),
    Claim(
        "vit-keeps-detail",
        "A ViT keeps detail that DETR drops: at every stage that both have, more of the structural similarity that the "
        "mean image lacks.",
        "sec. 4.1, Fig. 3",
        "stage_error",
        (CLASSIFIER, DETECTOR),
        _more_detail,
        _KEPT + ", less that of the detector",
        least=0.05,
    ),
    *for_both(
        "error-rises",
        "The reconstruction error rises with depth, at every stage of {}, from below that of the mean image.",
        "sec. 4.1, Fig. 4",
        "stage_error",
        _rise,
        _UNIT,
        least=0.01,
    ),
    Claim(
        "vit-below-detr",
        "A ViT's error is far below DETR's at every stage that both have.",
        "sec. 4.1, Fig. 4",
        "stage_error",
        (CLASSIFIER, DETECTOR),
        _apart,
        _UNIT + ", less that of the detector",
        "below",
        least=0.05,
    ),
    Claim(
        "decoder-above-mean-image",
        "From the decoder on, a detector's reconstructions are further from the input than the mean image is.",
        "sec. 4.1, Fig. 4",
        "stage_error",
        (DETECTOR,),
        _above_mean_image,
        _UNIT,
    ),
    Claim(
        "classic-below-modular",
        "Classic inversion has a lower error than modular inversion.",
        "sec. 4.2, Fig. 6",
        "trade_off",
        (ANY,),
        partial(_classic_less_modular, metric="mse"),
        "share of the modular MSE",
        "below",
        least=0.02,
        of_inverses=False,
    ),
    Claim(
        "classic-is-greyish",
        "Classic reconstructions are greyer than modular ones.",
        "sec. 4.2, Fig. 5",
        "trade_off",
        (ANY,),
        partial(_classic_less_modular, metric="saturation"),
        "share of the modular saturation",
        "below",
        least=0.02,
        of_inverses=False,
    ),
    Claim(
        "error-falls-with-lambda",
        "The more the reconstruction weighs in fine-tuning (lambda), the lower its error.",
        "sec. 4.2, Fig. 6",
        "trade_off",
        (ANY,),
        partial(_by_lambda, metrics=[ERROR]),
        "share of the MSE at the smallest lambda",
        "below",
        least=0.02,
        of_inverses=False,
    ),
    Claim(
        "task-falls-with-lambda",
        "The more the reconstruction weighs in fine-tuning (lambda), the worse the model does at its task.",
        "sec. 4.2, Fig. 6",
        "trade_off",
        (ANY,),
        _task_by_lambda,
        "AP or accuracy",
        "below",
        least=0.005,
        of_inverses=False,
    ),
    Claim(
        "reconstruction-is-specific",
        "Seen again by the model, a reconstruction is nearer to its original than the mean image is, at every stage.",
        "ours",
        "trust",
        (ANY,),
        _nearer_than_mean_image,
        "mean distances between images",
        least=0.05,
    ),
    Claim(
        "seeds-agree",
        "Inverses of different seeds paint the same: at no stage do they differ by a tenth of what images do.",
        "ours",
        "trust",
        (ANY,),
        _seeds_agree,
        "MSE between seeds, in units of the mean image's",
        "below",
        null=0.1,
        of_inverses=False,
    ),
)

"""Claims about what is left of the image at each stage, and what more of it costs (paper, sec. 4.1 and 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from backsight.core import UserError
from backsight.experiments.claims.claim import ANY, CLASSIFIER, DETECTOR, Claim, Comparison, Evidence
from backsight.experiments.result import Measurement
from backsight.experiments.stage_error import MEAN_IMAGE
from backsight.experiments.trade_off import OF_IMAGES
from backsight.experiments.trust import RECONSTRUCTION

_UNIT = "MSE in units of the mean image's"


def _error(evidence: Evidence, stage: str, role: int = 0) -> Tensor:
    return evidence.values(role, metric="relative mse", stage=stage)


def _rise(evidence: Evidence) -> Iterator[Comparison]:
    for before, after in pairwise(evidence.stages()):
        yield Comparison(f"{after} less {before}", _error(evidence, after) - _error(evidence, before))


def _apart(evidence: Evidence) -> Iterator[Comparison]:
    for stage in evidence.shared_stages():
        yield Comparison(stage, _error(evidence, stage), _error(evidence, stage, 1))


def _above_mean_image(evidence: Evidence) -> Iterator[Comparison]:
    for stage in evidence.stages()[evidence.stages().index(evidence.deepest()) :]:
        difference = _error(evidence, stage) - _error(evidence, MEAN_IMAGE)
        yield Comparison(f"{stage} less the mean image", difference)


def _detail_lost(evidence: Evidence, role: int = 0, last: str = "") -> Comparison:
    """How far SSIM falls from the first stage to ``last`` (the deepest by default)."""
    first, last = evidence.stages(role)[0], last or evidence.deepest(role)
    fall = evidence.values(role, metric="ssim", stage=first) - evidence.values(role, metric="ssim", stage=last)
    return Comparison(f"{first} less {last}", fall)


def _less_detail_lost(evidence: Evidence) -> Iterator[Comparison]:
    last = evidence.shared_stages()[-1]
    own, other = (_detail_lost(evidence, role, last) for role in (0, 1))
    yield Comparison(own.what, own.values, other.values)


# ---- what a better reconstruction costs: the values of a run are means over its test images, a row for each seed


def _only(found: list[Measurement], what: str) -> Measurement:
    if not found:
        raise UserError(f"none of the runs is {what}")
    return found[0]


def _classic(evidence: Evidence) -> Iterator[Comparison]:
    yield from _classic_less_modular(evidence, "mse")


def _classic_greyer(evidence: Evidence) -> Iterator[Comparison]:
    yield from _classic_less_modular(evidence, "saturation")


def _classic_less_modular(evidence: Evidence, metric: str) -> Iterator[Comparison]:
    classic, modular = (
        _only(evidence.select(task=task, metric=metric), f"{task} and measured its {metric}").values
        for task in ("classic", "modular")
    )
    unit = modular.mean()
    yield Comparison("classic less modular", classic / unit, modular / unit, "")


def _is_error(measurement: Measurement) -> bool:
    return measurement.labels["metric"] == "mse"


def _by_lambda(evidence: Evidence, performance: bool) -> Iterator[Comparison]:
    """The largest lambda less the smallest, of the error or of the performance at the task."""
    runs = evidence.select(task="joint")
    found = [each for each in runs if (each.labels["metric"] not in OF_IMAGES if performance else _is_error(each))]
    found.sort(key=lambda each: float(each.labels["trade_off"]))
    if len({each.labels["trade_off"] for each in found}) < 2:
        raise UserError("no two runs of joint training with different lambda")
    least, most = found[0], found[-1]
    unit = 1 if performance else least.values.mean()
    what = f"lambda {most.labels['trade_off']:g} less lambda {least.labels['trade_off']:g}"
    yield Comparison(what, most.values / unit, least.values / unit, "")


def _error_by_lambda(evidence: Evidence) -> Iterator[Comparison]:
    yield from _by_lambda(evidence, performance=False)


def _task_by_lambda(evidence: Evidence) -> Iterator[Comparison]:
    yield from _by_lambda(evidence, performance=True)


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
        lambda evidence: [_detail_lost(evidence)],
        "SSIM lost",
        least=0.05,
    ),
    Claim(
        "vit-keeps-detail",
        "A ViT keeps detail that DETR drops: up to the encoder its structural similarity falls less.",
        "sec. 4.1, Fig. 3",
        "stage_error",
        (CLASSIFIER, DETECTOR),
        _less_detail_lost,
        "SSIM lost, less that of the detector",
        "below",
        least=0.02,
    ),
    Claim(
        "error-rises-detr",
        "The reconstruction error rises with depth, at every stage of a detector.",
        "sec. 4.1, Fig. 4",
        "stage_error",
        (DETECTOR,),
        _rise,
        _UNIT,
        least=0.01,
    ),
    Claim(
        "error-rises-vit",
        "The reconstruction error rises with depth, at every stage of a ViT.",
        "sec. 4.1, Fig. 4",
        "stage_error",
        (CLASSIFIER,),
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
        _classic,
        "share of the modular MSE",
        "below",
        least=0.02,
    ),
    Claim(
        "classic-is-greyish",
        "Classic reconstructions are greyer than modular ones.",
        "sec. 4.2, Fig. 5",
        "trade_off",
        (ANY,),
        _classic_greyer,
        "share of the modular saturation",
        "below",
        least=0.02,
    ),
    Claim(
        "error-falls-with-lambda",
        "The more the reconstruction weighs in fine-tuning (lambda), the lower its error.",
        "sec. 4.2, Fig. 6",
        "trade_off",
        (ANY,),
        _error_by_lambda,
        "share of the MSE at the smallest lambda",
        "below",
        least=0.02,
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
    ),
)

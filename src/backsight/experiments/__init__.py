"""The experiments, by name. A new one is one file here, and one line in :data:`EXPERIMENTS`.

Each has ``measure(subject, ...) -> Result``, which draws nothing, and ``draw(result) -> list[Figure]``, which computes
nothing; the pages of a figure can be drawn again from ``result.json`` alone. ``trade_off`` has ``compare_runs(runs)``
instead of ``measure``. The results of several subjects are one by :meth:`~backsight.results.Result.join`.
"""

from backsight.core import UserError
from backsight.experiments.abstraction import ABSTRACTION
from backsight.experiments.ambiguity import AMBIGUITY
from backsight.experiments.attention_ablation import ATTENTION_ABLATION
from backsight.experiments.color_perturbation import COLOR_PERTURBATION
from backsight.experiments.detection_errors import DETECTION_ERRORS
from backsight.experiments.intermediate_layers import INTERMEDIATE_LAYERS
from backsight.experiments.layer_similarity import LAYER_SIMILARITY
from backsight.experiments.prototypes import PROTOTYPES
from backsight.experiments.reconstruct import RECONSTRUCT
from backsight.experiments.run import Experiment, draw, run_experiment
from backsight.experiments.stage_error import STAGE_ERROR
from backsight.experiments.subject import Subject, open_subject
from backsight.experiments.token_noise import TOKEN_NOISE
from backsight.experiments.trade_off import TRADE_OFF
from backsight.experiments.trust import TRUST
from backsight.experiments.truth import TRUTH
from backsight.results import Measurement, Picture, Result
from backsight.validation import nearest

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        RECONSTRUCT,
        STAGE_ERROR,
        INTERMEDIATE_LAYERS,
        LAYER_SIMILARITY,
        TRUST,
        TRUTH,
        AMBIGUITY,
        TRADE_OFF,
        COLOR_PERTURBATION,
        TOKEN_NOISE,
        ATTENTION_ABLATION,
        PROTOTYPES,
        ABSTRACTION,
        DETECTION_ERRORS,
    )
}


def find_experiment(name: str) -> Experiment:
    """The experiment called ``name``.

    >>> find_experiment("stage_error").question
    'How much of the image is lost by each stage?'

    Raises:
        UserError: there is none; the nearest name is offered.
    """
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    raise UserError(f"no experiment '{name}': {nearest(name.replace('-', '_'), EXPERIMENTS)}")


__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Measurement",
    "Picture",
    "Result",
    "Subject",
    "draw",
    "find_experiment",
    "open_subject",
    "run_experiment",
]

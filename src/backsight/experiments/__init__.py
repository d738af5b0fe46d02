"""The experiments, by name. A new one is one file here, and one line in :data:`EXPERIMENTS`.

Each has ``measure(subjects, ...) -> Result``, which draws nothing, and ``draw(result) -> Figure``, which computes
nothing; a figure can be drawn again from ``result.json`` alone.
"""

from backsight.experiments.registry import Experiment, draw, run_experiment
from backsight.experiments.result import Measurement, Picture, Result
from backsight.experiments.stage_error import STAGE_ERROR
from backsight.experiments.subject import Subject

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (STAGE_ERROR,)}

__all__ = ["EXPERIMENTS", "Experiment", "Measurement", "Picture", "Result", "Subject", "draw", "run_experiment"]

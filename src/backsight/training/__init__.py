"""Training: one loop for every task, and the folder that a run leaves."""

from backsight.training.distributed import Processes, joined, launched
from backsight.training.folder import RunFolder
from backsight.training.loop import Budget, Loop, NotFinite, State
from backsight.training.run import Run, command
from backsight.training.signals import Interrupted
from backsight.training.start import open_model, train, train_run

__all__ = [
    "Budget",
    "Interrupted",
    "Loop",
    "NotFinite",
    "Processes",
    "Run",
    "RunFolder",
    "State",
    "command",
    "joined",
    "launched",
    "open_model",
    "train",
    "train_run",
]

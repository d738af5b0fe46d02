"""Training: one loop for every task, and the folder that a run leaves."""

from backsight.training.checkpoints import State
from backsight.training.folder import RunFolder
from backsight.training.loop import Budget, Interrupted, Loop, NotFinite
from backsight.training.run import Run, command, open_model, train, train_run

__all__ = [
    "Budget",
    "Interrupted",
    "Loop",
    "NotFinite",
    "Run",
    "RunFolder",
    "State",
    "command",
    "open_model",
    "train",
    "train_run",
]

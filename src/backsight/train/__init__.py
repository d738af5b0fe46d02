"""Training: one loop for every task, and the folder that a run leaves."""

from backsight.train.budget import Budget
from backsight.train.loop import Interrupted, Loop, State, Task
from backsight.train.run import Run, command
from backsight.train.run_folder import RunFolder
from backsight.train.start import open_model, read_size, train, train_run

__all__ = [
    "Budget",
    "Interrupted",
    "Loop",
    "Run",
    "RunFolder",
    "State",
    "Task",
    "command",
    "open_model",
    "read_size",
    "train",
    "train_run",
]

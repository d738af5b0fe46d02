"""Training: one loop for every task, and the folder that a run leaves."""

from backsight.train.budget import Budget
from backsight.train.loop import Loop, State, Task
from backsight.train.processes import Processes, joined, launched
from backsight.train.run import Run, command
from backsight.train.run_folder import RunFolder
from backsight.train.signals import Interrupted
from backsight.train.start import open_model, read_size, train, train_run
from backsight.train.stopping import NotFinite

__all__ = [
    "Budget",
    "Interrupted",
    "Loop",
    "NotFinite",
    "Processes",
    "Run",
    "RunFolder",
    "State",
    "Task",
    "command",
    "joined",
    "launched",
    "open_model",
    "read_size",
    "train",
    "train_run",
]

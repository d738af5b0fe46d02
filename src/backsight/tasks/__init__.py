"""What is optimised: a task is a forward pass and losses for its networks. The loop is in ``train``."""

from backsight.tasks.choice import facts_of, make_task
from backsight.tasks.classic import Classic
from backsight.tasks.joint import FORWARD, UPDATES, Joint
from backsight.tasks.modular import Modular
from backsight.tasks.performance import performance
from backsight.tasks.plans import build_chains, learning_rate, make_plans
from backsight.tasks.task import Task, component_loss
from backsight.tasks.truth import answer, as_label, as_labels, check_truth

__all__ = [
    "FORWARD",
    "UPDATES",
    "Classic",
    "Joint",
    "Modular",
    "Task",
    "answer",
    "as_label",
    "as_labels",
    "build_chains",
    "check_truth",
    "component_loss",
    "facts_of",
    "learning_rate",
    "make_plans",
    "make_task",
    "performance",
]

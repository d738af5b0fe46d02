"""See what a vision model still knows about an image, stage by stage.

Names are imported when they are first used, so that ``import backsight`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backsight import experiments
    from backsight.chain import ChainEnsemble, InverseChain
    from backsight.core import Classes, Detections, Layout, Pixels, Site, Spec, Stage, UserError
    from backsight.data import load_images, open_data
    from backsight.demos import demo
    from backsight.display import explore, show
    from backsight.engine import StagedModel, Trace
    from backsight.evaluation import evaluate
    from backsight.experiments import Subject
    from backsight.inverses import INVERSES
    from backsight.models import MODELS, load_model, stage, vocabulary
    from backsight.options import ModelOptions, SweepOptions
    from backsight.report import write_report
    from backsight.report.reconstruct import reconstruct
    from backsight.reproduction import experiment, reproduce
    from backsight.results import Result
    from backsight.sweeps import sweep
    from backsight.training import train
    from backsight.verification import verify

    __version__: str

_HOMES = {
    "backsight.chain": ("ChainEnsemble", "InverseChain"),
    "backsight.core": ("Classes", "Detections", "Layout", "Pixels", "Site", "Spec", "Stage", "UserError"),
    "backsight.data": ("load_images", "open_data"),
    "backsight.demos": ("demo",),
    "backsight.display": ("explore", "show"),
    "backsight.evaluation": ("evaluate",),
    "backsight.experiments": ("Subject",),
    "backsight.inverses": ("INVERSES",),
    "backsight.models": ("MODELS", "load_model", "stage", "vocabulary"),
    "backsight.options": ("ModelOptions", "SweepOptions"),
    "backsight.report": ("write_report",),
    "backsight.report.reconstruct": ("reconstruct",),
    "backsight.reproduction": ("experiment", "reproduce"),
    "backsight.results": ("Result",),
    "backsight.sweeps": ("sweep",),
    "backsight.engine": ("StagedModel", "Trace"),
    "backsight.training": ("train",),
    "backsight.verification": ("verify",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "INVERSES",
    "MODELS",
    "ChainEnsemble",
    "Classes",
    "Detections",
    "InverseChain",
    "Layout",
    "ModelOptions",
    "Pixels",
    "Result",
    "Site",
    "Spec",
    "Stage",
    "StagedModel",
    "Subject",
    "SweepOptions",
    "Trace",
    "UserError",
    "demo",
    "evaluate",
    "experiment",
    "experiments",
    "explore",
    "load_images",
    "load_model",
    "open_data",
    "reconstruct",
    "reproduce",
    "show",
    "stage",
    "sweep",
    "train",
    "verify",
    "vocabulary",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("backsight")
    if name == "experiments":  # a module of modules: each experiment has `measure` and `draw`
        return import_module("backsight.experiments")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'backsight' has no attribute '{name}'")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__

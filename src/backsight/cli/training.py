"""The commands that train: the demo, one run, all runs that the paper compares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from backsight.options import ModelName, ModelOptions, SweepOptions, TrainOptions


def demo(out: Path = Path("demo"), minutes: float = 1.2, seeds: int = 1, seed: int = 0) -> None:
    """The main job on the shipped models: reconstructs by the shipped inverses, trains new ones, measures, reports.

    Args:
        out: The folder for the pages (report.html) and the runs; an earlier demo there is replaced.
        minutes: Training time in all; 0 trains nothing, and shows what the shipped inverses give.
        seeds: How many instances of every inverse to train.
        seed: The first of them.
    """
    from backsight.demos import demo as run_demo

    for page in run_demo(out, minutes=minutes, seeds=seeds, seed=seed):
        print(page)


def train(
    model: ModelName,
    options: OmitArgPrefixes[TrainOptions] = TrainOptions(),  # noqa: B008  (frozen)
    model_options: OmitArgPrefixes[ModelOptions] = ModelOptions(),  # noqa: B008  (frozen)
) -> None:
    """Train every inverse of a model, all stages and seeds in one pass over the forward model.

    Args:
        model: A name (detr-resnet-50, timm/vit_base_patch16_224, zoo/detr-prior), a folder with a saved model, or a
            function in a file of your own (my_module.py:build).
    """
    from backsight.distributed import is_main
    from backsight.training import train_run

    ensemble = train_run(model, options, model_options)
    if not is_main():
        return
    if ensemble.model["weights"] == "random":
        print("random weights: this run shows that the method works, not what a trained model knows")
    print(f"{options.out / 'card.md'}\n{options.out / 'chains'}")


def sweep(
    model: ModelName,
    options: OmitArgPrefixes[SweepOptions] = SweepOptions(),  # noqa: B008  (frozen)
    model_options: OmitArgPrefixes[ModelOptions] = ModelOptions(),  # noqa: B008  (frozen)
) -> None:
    """Train a model's inverses in every way (modular, classic, joint at each trade-off), and compare what they cost.

    Runs that are finished are kept, an unfinished one goes on: the same command does the rest.

    Args:
        model: As for `backsight train`.
    """
    from backsight.distributed import is_main
    from backsight.sweeps import sweep as run_sweep

    page = run_sweep(model, options, model_options)
    if is_main():
        print(page)


def merge(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUNS...")], out: Path = Path("runs/merged")
) -> None:
    """Runs of one seed each, as array jobs leave them, as one run of all seeds.

    Args:
        runs: Their folders; they stay as they are.
        out: The folder of the new run.
    """
    from backsight.training.merge import merge as merge_runs

    print(merge_runs(runs, out) / "card.md")

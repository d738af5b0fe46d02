"""The commands that train: one run, or all that the paper compares."""

from __future__ import annotations

from tyro.conf import OmitArgPrefixes, Positional

from backsight.options import ModelOptions, TaskName, TrainOptions


def train(
    model: Positional[str],
    options: OmitArgPrefixes[TrainOptions] = TrainOptions(),  # noqa: B008  (frozen)
    model_options: OmitArgPrefixes[ModelOptions] = ModelOptions(),  # noqa: B008  (frozen)
) -> None:
    """Train every inverse of a model, all stages and seeds in one pass over the forward model.

    Args:
        model: A name (detr-resnet-50, timm/vit_base_patch16_224, zoo/detr-prior), a folder with a saved model, or a
            function in a file of your own (my_module.py:build).
    """
    from backsight.training import train_run

    ensemble = train_run(model, options, model_options)
    if ensemble.model["weights"] == "random":
        print("random weights: this run shows that the method works, not what a trained model knows")
    print(f"{options.out / 'card.md'}\n{options.out / 'chains'}")


def sweep(
    model: Positional[str],
    options: OmitArgPrefixes[TrainOptions] = TrainOptions(),  # noqa: B008  (frozen)
    trade_offs: tuple[float, ...] = (0.0, 0.1, 0.9, 1.0),
    tasks: tuple[TaskName, ...] = ("modular", "classic", "joint"),
    model_options: OmitArgPrefixes[ModelOptions] = ModelOptions(),  # noqa: B008  (frozen)
) -> None:
    """Train a model's inverses in every way (modular, classic, joint at each trade-off), and compare what they cost.

    Runs that are finished are kept, an unfinished one goes on: the same command does the rest.

    Args:
        model: As for `backsight train`.
        trade_offs: The values of lambda, one joint run each.
        tasks: Leave some out.
    """
    from backsight.sweeps import sweep as run_sweep

    print(run_sweep(model, options, model_options, trade_offs=trade_offs, tasks=tasks))

"""The commands of experiments: one of them, or all with the claims that they decide on."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from backsight.cli.app import print_table


def experiment(
    name: Positional[str],
    models: Positional[tuple[str, ...]] = (),
    out: Path | None = None,
    chain: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
    images: int = 100,
    set: tuple[str, ...] = (),
    device: str = "auto",
) -> None:
    """One experiment on one or more models: result.json, table.csv, figure.png, figure.pdf and report.html.

    Args:
        name: reconstruct, stage_error, color_perturbation, token_noise, ...; `experiment list` shows all of them.
        models: The forward models; those that the chains were trained on, if none is named.
        out: The folder; experiments/NAME if not given. An earlier result there is replaced.
        chain: For each model a run, one chain, or a name; those that ship with the model if not given.
        data: One for all models, or one for each; what the chains were trained on if not given.
        images: How many test images to look at.
        set: Settings of the experiment, as num_pictures=3 or shares=[0.1,0.5].
        device: Where to compute: auto, cpu, cuda.
    """
    from backsight.experiments import EXPERIMENTS
    from backsight.reproduction import experiment as run_experiment

    if name == "list":
        print_table(["experiment", "question"], [[each.name, each.question] for each in EXPERIMENTS.values()])
        return
    out = out or Path("experiments", name)
    run_experiment(name, out, models=models, chains=chain, data=data, images=images, settings=set, device=device)
    print(f"{out / 'report.html'}\n{out / 'figure.png'}")


def reproduce(
    out: Path = Path("reproduction"),
    models: tuple[str, ...] = (),
    chains: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
    images: int = 100,
    experiments: tuple[str, ...] = (),
    runs: tuple[Path, ...] = (),
    set: tuple[str, ...] = (),
    device: str = "auto",
) -> None:
    """All experiments and the table of claims, with confidence intervals; what is done already is kept.

    Args:
        out: The folder for report.html, claims.json and a folder of each experiment.
        models: The forward models; if none is named, those that ship with the package.
        chains: For each model a run, one chain, or a name; those that ship with the model if not given.
        data: One for all models, or one for each; what the chains were trained on if not given.
        images: How many test images to look at.
        experiments: Only these; what the folder holds of others is shown as it is.
        runs: Finished runs (modular, classic, joint) for the experiment trade_off.
        set: Settings of experiments, as truth.num_scenes=200.
        device: Where to compute: auto, cpu, cuda.
    """
    from backsight.reproduction import read_all_settings
    from backsight.reproduction import reproduce as run_all

    chosen = {"models": models, "chains": chains, "data": data, "experiments": experiments or None, "runs": runs}
    print(run_all(out, images=images, settings=read_all_settings(set), device=device, **chosen))

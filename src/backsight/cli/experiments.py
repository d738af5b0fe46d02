"""The commands that show what inverses give: reconstructions, one experiment, all with their claims, the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from backsight.cli.inspection import print_table


def reconstruct(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGES...")],
    out: Path = Path("reconstructions"),
    model: str | None = None,
    device: str = "auto",
    strict: bool = False,
    draws: int = 0,
) -> None:
    """Your own pictures, from every stage of a trained run: PNG files, results.json and report.html.

    Args:
        run: The folder of a run, or of one chain.
        images: Picture files; a folder stands for the pictures in it.
        out: The folder to write to.
        model: The forward model, where the name that the run keeps leads to it no more.
        device: Where to compute: auto, cpu, cuda.
        strict: Fail at a picture that cannot be read, instead of leaving it out.
        draws: How many draws to show under each picture, with a map of where they differ, if inverses sample.
    """
    from backsight.distributed import is_main
    from backsight.report.reconstruct import reconstruct as run_reconstruct

    run_reconstruct(run, images, out, model=model, device=device, strict=strict, draws=draws)
    if is_main():
        print(out / "report.html")


def experiment(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="[MODELS...]")] = (),
    out: Path | None = None,
    chain: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
    images: int = 100,
    set: tuple[str, ...] = (),
    device: str = "auto",
) -> None:
    """One experiment on one or more models: result.json, table.csv, figure.pdf and its pages as PNG, report.html.

    Args:
        name: reconstruct, stage_error, color_perturbation, token_noise, ...; `experiment list` shows all of them.
        models: The forward models; those that the chains were trained on, if none is named.
        out: The folder; experiments/NAME if not given. An earlier result there is replaced.
        chain: For each model a run, one chain, or a name; those that ship with the model if not given. `linear`: ridge
            regressions on the data, solved at once.
        data: One for all models, or one for each; what the chains were trained on if not given.
        images: How many test images to look at.
        set: Settings of the experiment, as num_pictures=3 or shares=[0.1,0.5].
        device: Where to compute: auto, cpu, cuda.
    """
    from backsight.distributed import is_main
    from backsight.experiments import EXPERIMENTS
    from backsight.reproduction import experiment as run_experiment

    if name == "list":
        print_table(["experiment", "question"], [[each.name, each.question] for each in EXPERIMENTS.values()])
        return
    out = out or Path("experiments", name)
    run_experiment(name, out, models=models, chains=chain, data=data, images=images, settings=set, device=device)
    if is_main():
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
    jobs: Literal["submitit"] | None = None,
) -> None:
    """All experiments and the table of claims, with confidence intervals; what is done already is kept.

    Args:
        out: The folder for report.html, the claims (claims.json, .csv, .tex, .pdf), methods.txt and a folder of each
            experiment.
        models: The forward models; if none is named, those that ship with the package.
        chains: For each model a run, one chain, or a name; those that ship with the model if not given. `linear`: ridge
            regressions on the data, solved at once.
        data: One for all models, or one for each; what the chains were trained on if not given.
        images: How many test images to look at.
        experiments: Only these; what the folder holds of others is shown as it is.
        runs: Finished runs (modular, classic, joint) for the experiment trade_off; those whose tables ship with the
            models if not given.
        set: Settings of experiments, as truth.num_scenes=200.
        device: Where to compute: auto, cpu, cuda.
        jobs: Each experiment as a job of its own, on Slurm or this machine.
    """
    from backsight.distributed import is_main
    from backsight.reproduction import read_all_settings
    from backsight.reproduction import reproduce as run_all

    chosen = {"models": models, "chains": chains, "data": data, "experiments": experiments or None, "runs": runs}
    page = run_all(out, images=images, settings=read_all_settings(set), device=device, jobs=jobs, **chosen)
    if is_main():
        print(page)


def report(folder: Annotated[Positional[Path], arg(metavar="DIR")]) -> None:
    """One HTML page from results.

    Args:
        folder: What reconstruct, demo, experiment or reproduce left: a folder with results.json, result.json or
            reproduce.json.
    """
    from backsight.report import rewrite_report

    print(rewrite_report(folder))

"""The commands that show what inverses give."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


def demo(out: Path = Path("demo"), minutes: float = 4.5, seeds: int = 1, seed: int = 0) -> None:
    """The main job on the shipped models: trains inverses, reconstructs, measures, writes a report.

    Args:
        out: The folder for report.html, results.json and the runs; an earlier demo there is replaced.
        minutes: Training time in all.
        seeds: How many instances of every inverse to train.
        seed: The first of them.
    """
    from backsight.demos import demo as run_demo

    for page in run_demo(out, minutes=minutes, seeds=seeds, seed=seed):
        print(page)


def reconstruct(
    run: Positional[Path],
    images: Positional[tuple[Path, ...]],
    out: Path = Path("reconstructions"),
    model: str | None = None,
    device: str = "auto",
    strict: bool = False,
) -> None:
    """Your own pictures, from every stage of a trained run: PNG files, results.json and report.html.

    Args:
        run: The folder of a run, or of one chain.
        images: Picture files; a folder stands for the pictures in it.
        out: The folder to write to.
        model: The forward model, where the name that the run keeps leads to it no more.
        device: Where to compute: auto, cpu, cuda.
        strict: Fail at a picture that cannot be read, instead of leaving it out.
    """
    from backsight.report.reconstruct import reconstruct as run_reconstruct

    run_reconstruct(run, images, out, model=model, device=device, strict=strict)
    print(out / "report.html")


def report(folder: Positional[Path]) -> None:
    """One HTML page from results.

    Args:
        folder: What reconstruct, demo, experiment or reproduce left: a folder with results.json, result.json or
            reproduce.json.
    """
    from backsight.report import rewrite_report

    print(rewrite_report(folder))

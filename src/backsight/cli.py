"""The commands. Each is one public function, imported when it is called, so that ``--help`` is quick."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from backsight.options import ModelOptions, Size, TrainOptions

QUIET = ("httpx", "httpx2", "huggingface_hub", "timm", "transformers", "matplotlib")
"""Libraries whose messages are not for our users."""

PARSING = (tyro.conf.FlagCreatePairsOff,)
"""A flag is `--resume`; there is no `--no-resume` beside it."""

app = tyro.extras.SubcommandApp()
zoo = tyro.extras.SubcommandApp()


def command(function: Callable[..., None], group: tyro.extras.SubcommandApp = app) -> Callable[..., None]:
    """Make a function a command. Parsing gives the call, not yet its effect, so that only parsing is listened to."""

    @functools.wraps(function)
    def bound(*positional: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(function, *positional, **named)

    bound.__annotations__ = {**function.__annotations__, "return": Any}
    register: Any = group.command
    register(bound, name=function.__name__.removeprefix("zoo_"))
    return function


@command
def demo(out: Path = Path("demo"), minutes: float = 4.5, seeds: int = 1, seed: int = 0) -> None:
    """The main job on the shipped models: trains inverses, reconstructs, measures, writes a report.

    Args:
        out: The folder for report.html, results.json and the runs; an earlier demo there is replaced.
        minutes: Training time in all.
        seeds: How many instances of every inverse to train.
        seed: The first of them.
    """
    from backsight.demo import demo as run_demo

    for page in run_demo(out, minutes=minutes, seeds=seeds, seed=seed):
        print(page)


@command
def train(
    model: Positional[str],
    options: OmitArgPrefixes[TrainOptions] = TrainOptions(),  # noqa: B008  (frozen)
    model_options: OmitArgPrefixes[ModelOptions] = ModelOptions(),  # noqa: B008  (frozen)
) -> None:
    """Train every inverse of a model, all stages and seeds in one pass over the forward model.

    Args:
        model: A name (detr-resnet-50, timm/vit_base_patch16_224, zoo/detr-prior), or a folder with a saved model.
    """
    from backsight.train import train_run

    ensemble = train_run(model, options, model_options)
    if ensemble.model["weights"] == "random":
        print("random weights: this run shows that the method works, not what a trained model knows")
    print(f"{options.out / 'card.md'}\n{options.out / 'chains'}")


@command
def reconstruct(
    run: Positional[Path],
    images: Positional[tuple[Path, ...]],
    out: Path = Path("reconstructions"),
    device: str = "auto",
    strict: bool = False,
) -> None:
    """Your own pictures, from every stage of a trained run: PNG files, results.json and report.html.

    Args:
        run: The folder of a run, or of one chain.
        images: Picture files; a folder stands for the pictures in it.
        out: The folder to write to.
        device: Where to compute: auto, cpu, cuda.
        strict: Fail at a picture that cannot be read, instead of leaving it out.
    """
    from backsight.report.reconstruct import reconstruct as run_reconstruct

    run_reconstruct(run, images, out, device=device, strict=strict)
    print(out / "report.html")


@command
def report(folder: Positional[Path]) -> None:
    """One HTML page from results.

    Args:
        folder: A folder with results.json.
    """
    from backsight.report import Results, write_report

    print(write_report(Results.load(folder), folder / "report.html"))


@command
def models(json: Path | None = None) -> None:
    """The models there are: families, well-known names, the zoo.

    Args:
        json: Write the same to a file.
    """
    from backsight.catalogue import list_models

    rows = list_models()
    _print_table(["family", "library", "names"], [[r["family"], r["library"], ", ".join(r["names"])] for r in rows])
    _save(json, rows)


@command
def stages(
    model: Positional[str],
    options: OmitArgPrefixes[ModelOptions] = ModelOptions(),  # noqa: B008  (frozen)
    json: Path | None = None,
) -> None:
    """Where a model's sites are: every stage and layer, its module, its tokens, its inverses.

    Args:
        model: A name, or a folder with a saved model.
        json: Write the same to a file.
    """
    from backsight.catalogue import list_stages
    from backsight.train import open_model

    rows = list_stages(open_model(model, options))
    columns = ["stage", "site", "tokens", "width", "grid", "inverses"]
    _print_table(columns, [[str(row[column]) for column in columns] for row in rows])
    _save(json, rows)


@command
def verify(
    model: Positional[str],
    size: Size = None,
    weights: Path | None = None,
    pretrained: bool = False,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Proof that a model's sites are right: replay exact, an edit changes the output, the gradient is not zero.

    Args:
        model: A name, or a folder with a saved model.
        size: Image size in pixels other than the model's own, as 384x512.
        weights: A file of weights for the model.
        pretrained: Check a named model with its trained weights, not with random ones. A folder is always loaded.
        device: Where to compute: auto, cpu, cuda.
        json: Write the result to a file.
    """
    from backsight.core import UserError
    from backsight.train import open_model
    from backsight.verify import verify as check_sites

    named = not (pretrained or weights is not None or model.startswith("zoo/") or Path(model).is_dir())
    staged = open_model(model, ModelOptions(size, weights, named, device))
    checks = list(check_sites(staged))
    words = {True: "yes", False: "NO"}
    rows = [[c.name, f"{c.shape[0]} x {c.shape[1]}", *(words[ok] for ok in c.results)] for c in checks]
    _print_table(["site", "features", "replay exact", "edit changes output", "gradient"], rows)
    _save(json, {"model": model, "weights": staged.weights, "sites": [asdict(check) for check in checks]})
    wrong = [check.name for check in checks if not check.passed]
    if wrong:
        raise UserError(f"{len(wrong)} of {len(checks)} sites of {model} are wrong: {', '.join(wrong)}")
    print(f"{len(checks)} sites of {model} ({staged.weights} weights): all right")


def zoo_list(json: Path | None = None) -> None:
    """The small trained models that ship with the package, and their test figures.

    Args:
        json: Write their cards to a file.
    """
    from backsight.catalogue import list_zoo

    cards = list_zoo()
    _print_table(["name", "figures"], [[name, card["summary"]] for name, card in cards.items()])
    _save(json, cards)


def zoo_train(
    name: Positional[str], out: Path | None = None, steps: int | None = None, minutes: float | None = None
) -> None:
    """Train one of them again from nothing, by its own recipe.

    Args:
        name: One of `backsight zoo list`, as detr-prior.
        out: The folder for the weights and the card; runs/zoo/NAME if not given.
        steps: Batches, in place of the recipe's.
        minutes: Stop after this many minutes.
    """
    from backsight.zoo.train import train_forward

    out = out or Path("runs", "zoo", name)
    train_forward(name, out, steps=steps, minutes=minutes, log=logging.getLogger("backsight").info)
    print(out / "card.json")


command(zoo_list, zoo)
command(zoo_train, zoo)
app.command(zoo, name="zoo", help="The small trained models that ship with the package.")


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _save(path: Path | None, value: object) -> None:
    if path is not None:
        from backsight.files import write_json

        write_json(path, value)


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Exit status 0; 2 for a mistake that the user can mend, on one line; 130 for Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        _parse(sys.argv[1:] if arguments is None else arguments)()
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except OSError as error:
        if error.strerror is None:
            raise
        _fail(f"{error.filename or 'a file'}: {error.strerror}; choose another place, or mend this one", 2)
    except Exception as error:
        # By name, since their modules are heavy: whoever raised one has loaded it.
        names = {kind.__name__ for kind in type(error).__mro__}
        if "Interrupted" in names:
            _fail(str(error), 130)
        if "UserError" not in names:
            raise
        _fail(str(error), 2)


def _parse(arguments: list[str]) -> Callable[[], None]:
    """The call that the arguments mean; a mistake in them is told in one line instead of a box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return app.cli(prog="backsight", description=__doc__, args=arguments, config=PARSING)
    except SystemExit as stop:
        if stop.code == 2:
            _fail(_in_one_line(said.getvalue()), 2)
        raise


def _in_one_line(box: str) -> str:
    """The words in tyro's box of several lines."""
    words = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", " ", box)
    return " ".join(words.replace("Parsing error", "").replace("Unrecognized options", "unknown options").split())


def _fail(message: str, status: int) -> None:
    print(f"backsight: {message}", file=sys.stderr)
    sys.exit(status)

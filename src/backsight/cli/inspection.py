"""The commands that show what there is: models, their stages, the proof of their sites, training's cost, the zoo."""

from __future__ import annotations

import itertools
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes

from backsight.options import ModelName, ModelOptions, Size
from backsight.validation import Number, Positive, Range, Share, UserError, convert


def models(json: Path | None = None) -> None:
    """The models there are: families, well-known names, the zoo.

    Args:
        json: Write the same to a file.
    """
    from backsight.catalogue import list_models

    rows = list_models()
    print(*model_lines(rows, min(100, shutil.get_terminal_size((100, 24)).columns)), sep="\n")
    print("\nweights: fetched from the hub when first used, or from --weights FILE; --random-weights does without.")
    print("Any other model of these families works too, by its name on the hub or its folder; or one of your own.")
    print("No family needs an extra.")
    save(json, rows)


def stages(
    model: ModelName,
    options: OmitArgPrefixes[ModelOptions] = ModelOptions(),  # noqa: B008  (frozen)
    json: Path | None = None,
    propose: Path | None = None,
) -> None:
    """Where a model's sites are: every stage and layer, its module, its tokens, its inverses.

    Args:
        model: A name, a folder with a saved model, or a function in a file of your own (my_module.py:build).
        json: Write the same to a file.
        propose: For a model of your own: write a spec to begin with to this file.
    """
    from backsight.catalogue import list_stages, propose_spec
    from backsight.training import open_model

    if propose is not None:
        unknown = propose_spec(model, options, propose)
        print("\n".join([f"{propose}: a proposal. It could not tell", *(f"- {each}" for each in unknown)]))
        options = replace(options, spec=propose, random_weights=True)
    rows = list_stages(open_model(model, options))
    columns = ["stage", "site", "tokens", "width", "grid", "inverses"]
    print_table(columns, [[str(row[column]) for column in columns] for row in rows])
    save(json, rows)


def verify(
    model: ModelName,
    size: Size = None,
    weights: Path | None = None,
    pretrained: bool = False,
    device: str = "auto",
    spec: Path | None = None,
    json: Path | None = None,
) -> None:
    """Proof that a model's sites are right: replay exact, an edit changes the output, a gradient, tokens in order.

    Args:
        model: A name, or a folder with a saved model.
        size: Image size in pixels other than the model's own, as 384x512.
        weights: A file of weights for the model.
        pretrained: Check a named model with its trained weights, not with random ones. A folder is always loaded.
        device: Where to compute: auto, cpu, cuda.
        spec: Where the stages of a model of your own are: a YAML file.
        json: Write the result to a file.
    """
    from backsight.training import open_model
    from backsight.verification import verify as check_sites

    named = not (pretrained or weights is not None or model.startswith("zoo/") or Path(model).is_dir())
    staged = open_model(model, ModelOptions(size, weights, named, device, spec))
    checks = list(check_sites(staged))
    words = {True: "yes", False: "NO"}
    rows = [[c.name, f"{c.shape[0]} x {c.shape[1]}", *(words[ok] for ok in c.results)] for c in checks]
    print_table(["site", "features", "replay exact", "edit changes output", "gradient", "row by row"], rows)
    save(json, {"model": model, "weights": staged.weights, "sites": [asdict(check) for check in checks]})
    wrong = [check.name for check in checks if not check.passed]
    if wrong:
        raise UserError(f"{len(wrong)} of {len(checks)} sites of {model} are wrong: {', '.join(wrong)}")
    print(f"{len(checks)} sites of {model} ({staged.weights} weights): all right")


def cost(
    model: ModelName,
    seeds: int = 3,
    epochs: float = 10.0,
    inverse: tuple[str, ...] = (),
    tflops: float | None = None,
    share: float = 0.4,
    model_options: OmitArgPrefixes[ModelOptions] = ModelOptions(),  # noqa: B008  (frozen)
) -> None:
    """What training the inverses of a model costs: operations by stage, bytes, device hours for COCO and ImageNet.

    Args:
        model: As for `backsight train`; --random-weights will do.
        seeds: How many instances of every inverse.
        epochs: Passes over the training images.
        inverse: Other inverses, as for `backsight train`.
        tflops: The matrix rate of a device, in 10^12 operations a second; that of this machine is measured if it is
            not given.
        share: The part of that rate that training reaches, 0 to 1; `python -m benchmarks limit` measures it.
    """
    from backsight.cost import cost as count
    from backsight.cost import matrix_rate, table
    from backsight.training import open_model

    convert(seeds, Number, "--seeds")
    convert(epochs, Positive, "--epochs")
    convert(tflops, Positive | None, "--tflops")
    convert(share, Annotated[Share, Range(positive=True)], "--share")
    found = count(open_model(model, model_options), seeds, inverse)
    rate = matrix_rate(model_options.device) if tflops is None else tflops * 1e12
    print("\n".join(table(found, rate, share, epochs)))


def zoo_list(json: Path | None = None) -> None:
    """The small trained models that ship with the package, and their test figures.

    Args:
        json: Write their cards to a file.
    """
    from backsight.shipped import shipped_card, shipped_names

    cards, rows = {}, []
    for full_name in shipped_names():
        name, card = full_name.removeprefix("zoo/"), shipped_card(full_name)
        figures = [f"{figure} {value:.3f}" for figure, value in card["figures"].items() if isinstance(value, float)]
        cards[name] = {**card, "summary": ", ".join(figures)}
        rows.append([name, cards[name]["summary"]])
    print_table(["name", "figures"], rows)
    save(json, cards)


# ---- what they print


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Columns with a heading each, as wide as the terminal allows."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*map(escape, row))  # [logits] is a field here, not a style
    Console().print(table)


def save(path: Path | None, value: object) -> None:
    """Write ``value`` as JSON where the user asked for it."""
    if path is not None:
        from backsight.io import write_json

        write_json(path, value)


def model_lines(rows: Iterable[dict[str, Any]], width: int = 100) -> list[str]:
    """The rows of :func:`list_models` as a page ``width`` characters wide: for each family its stages with their
    inverses, then its models with their parameters, the layers of their stages that have any, and what they need."""
    rows = list(rows)
    longest = max(len(row["model"]) for row in rows)
    lines: list[str] = []
    for name, each in itertools.groupby(rows, key=lambda row: row["family"]):
        family = list(each)
        heading = f"{name} ({family[0]['library']})  {_inverses_in_words(family[0]['inverses'])}"
        kept = heading.replace(": ", ":\xa0")  # no line ends between a stage and its inverse
        lines += ["", *(line.replace("\xa0", " ") for line in textwrap.wrap(kept, width, subsequent_indent="    "))]
        lines += [_model_line(row, longest) for row in family]
    return lines[1:]


def _model_line(row: Mapping[str, Any], longest: int) -> str:
    layers = " + ".join(str(number) for number in row["stages"].values() if number)
    size = "" if row["parameters"] is None else f"{row['parameters'] / 1e6:.1f} M"
    needs = row["needs"].partition(":")[0]
    return f"  {row['model']:{longest}}  {size:>7}  {layers + ' layers' if layers else '':21}  {needs}".rstrip()


def _inverses_in_words(inverses: Mapping[str, Sequence[str]]) -> str:
    """``backbone: patch, stage1 to stage4: swin``: neighbours of the same inverse are named together."""
    words = {stage: " or ".join(dict.fromkeys(kinds)) for stage, kinds in inverses.items()}
    runs = [(kind, list(stages)) for kind, stages in itertools.groupby(words, key=words.__getitem__)]
    return ", ".join(f"{' to '.join(dict.fromkeys((stages[0], stages[-1])))}: {kind}" for kind, stages in runs)

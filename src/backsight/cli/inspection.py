"""The commands that tell what models there are, and where their sites are."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from backsight.cli.app import print_table, save
from backsight.options import ModelOptions, Size


def models(json: Path | None = None) -> None:
    """The models there are: families, well-known names, the zoo.

    Args:
        json: Write the same to a file.
    """
    import shutil

    from backsight.catalogue import list_models, model_lines

    rows = list_models()
    print(*model_lines(rows, min(100, shutil.get_terminal_size((100, 24)).columns)), sep="\n")
    print("\nweights: fetched from the hub when first used, or from --weights FILE; --random-weights does without.")
    print("Any other model of these families works too, by its name on the hub or its folder; or one of your own.")
    print("No family needs an extra.")
    save(json, rows)


def stages(
    model: Positional[str],
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
        options = replace(options, spec=propose)
    rows = list_stages(open_model(model, options))
    columns = ["stage", "site", "tokens", "width", "grid", "inverses"]
    print_table(columns, [[str(row[column]) for column in columns] for row in rows])
    save(json, rows)


def verify(
    model: Positional[str],
    size: Size = None,
    weights: Path | None = None,
    pretrained: bool = False,
    device: str = "auto",
    spec: Path | None = None,
    json: Path | None = None,
) -> None:
    """Proof that a model's sites are right: replay exact, an edit changes the output, the gradient is not zero.

    Args:
        model: A name, or a folder with a saved model.
        size: Image size in pixels other than the model's own, as 384x512.
        weights: A file of weights for the model.
        pretrained: Check a named model with its trained weights, not with random ones. A folder is always loaded.
        device: Where to compute: auto, cpu, cuda.
        spec: Where the stages of a model of your own are: a YAML file.
        json: Write the result to a file.
    """
    from backsight.core import UserError
    from backsight.training import open_model
    from backsight.verification import verify as check_sites

    named = not (pretrained or weights is not None or model.startswith("zoo/") or Path(model).is_dir())
    staged = open_model(model, ModelOptions(size, weights, named, device, spec))
    checks = list(check_sites(staged))
    words = {True: "yes", False: "NO"}
    rows = [[c.name, f"{c.shape[0]} x {c.shape[1]}", *(words[ok] for ok in c.results)] for c in checks]
    print_table(["site", "features", "replay exact", "edit changes output", "gradient"], rows)
    save(json, {"model": model, "weights": staged.weights, "sites": [asdict(check) for check in checks]})
    wrong = [check.name for check in checks if not check.passed]
    if wrong:
        raise UserError(f"{len(wrong)} of {len(checks)} sites of {model} are wrong: {', '.join(wrong)}")
    print(f"{len(checks)} sites of {model} ({staged.weights} weights): all right")

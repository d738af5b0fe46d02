"""What there is: models, their stages, the zoo."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backsight.core import Pixels, Site, Spec, UserError
from backsight.engine import StagedModel
from backsight.inverses import build_inverse
from backsight.io import write_text
from backsight.models import MODELS, Family, blueprint, build_own, is_own, load_model, propose
from backsight.options import ModelOptions
from backsight.shipped import shipped_card, shipped_names
from backsight.training import read_size


def list_models() -> list[dict[str, Any]]:
    """Every well-known model, and those that ship with the package; any other of the same families works too.

    Each is its name, family, library, task, stages with their number of layers, the inverses of every stage, its number
    of parameters (None where the library cannot build it without memory), and what it needs.
    """
    rows = []
    for family in MODELS.values():
        for short, hub_name in family.names.items():
            module = blueprint(family, short)
            spec = None if module is None else family.stage(module)
            needs = f"weights: {hub_name} on the hub, or a folder with them; or --random-weights"
            rows.append(_row(short, family, spec, module, needs))
    for name in shipped_names():
        model = load_model(name)
        rows.append(_row(name, MODELS[model.spec.family], model.spec, model.module, "nothing: it ships with backsight"))
    order = list(MODELS)
    return sorted(rows, key=lambda row: order.index(row["family"]))


def _row(name: str, family: Family, spec: Spec | None, module: nn.Module | None, needs: str) -> dict[str, Any]:
    stages = () if spec is None else spec.stages
    return {
        "model": name,
        "family": family.name,
        "library": family.library,
        "task": None if spec is None else spec.task,
        "stages": {stage.name: len(stage.layers) for stage in stages},
        "inverses": {stage.name: [kind for kind, _ in stage.inverses.values()] for stage in stages},
        "parameters": None if module is None else sum(each.numel() for each in module.parameters()),
        "needs": needs,
    }


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
    runs: list[tuple[list[str], str]] = []
    for stage, kinds in inverses.items():
        kind = " or ".join(dict.fromkeys(kinds))
        if runs and runs[-1][1] == kind:
            runs[-1][0].append(stage)
        else:
            runs.append(([stage], kind))
    return ", ".join(f"{' to '.join(dict.fromkeys((names[0], names[-1])))}: {kind}" for names, kind in runs)


def propose_spec(name: str, options: ModelOptions, path: Path) -> list[str]:
    """Write a spec to begin with for ``my_module.py:build`` to ``path``; what could not be told comes back in words.

    Raises:
        UserError: ``name`` is no function in a file of the user's, ``path`` is there, or no stage was found.
    """
    if not is_own(name):
        raise UserError(
            f"where the stages of {name} are is known: --propose is for a model of your own, FILE.py:FUNCTION"
        )
    if path.exists():
        raise UserError(f"{path} is there and may hold your changes: choose another name for the proposal")
    pixels = Pixels(read_size(options.size) or (224, 224))
    proposal = propose(lambda size: build_own(name, size), pixels, name)
    write_text(path, proposal.text)
    return proposal.unknown


def list_stages(model: StagedModel) -> list[dict[str, Any]]:
    """Every stage and layer of ``model``: where it is in the library's model, its static layout, its inverses.

    Raises:
        UserError: an inverse that a stage names is none, has no such option, or does not fit the layouts.
    """
    check_inverses(model)
    rows = []
    for name in model.names:
        layout, stage = model.layout(name), model.stage_of(name)
        inverses = [f"{kind} ({variant})" if variant else kind for variant, (kind, _) in stage.inverses.items()]
        rows.append(
            {
                "stage": name,
                "site": _sites_in_words(model.sites(name)),
                "tokens": layout.tokens,
                "width": layout.width,
                "grid": " + ".join(f"{h}x{w}" for h, w in layout.grids) or "-",
                "inverses": ", ".join(inverses) if name == stage.name else "",
            }
        )
    return rows


def check_inverses(model: StagedModel) -> None:
    """Build every inverse of ``model`` without memory for its weights, to tell what does not fit before training.

    Raises:
        UserError: one of them is none, has no such option, or does not fit the layouts.
    """
    statistics = {"mean": torch.tensor(model.pixels.mean), "std": torch.tensor(model.pixels.std)}
    for stage in model.spec.stages:
        source, target = model.layout(stage.name), model.layout(model.spec.before(stage.name))
        for name, options in stage.inverses.values():
            with torch.device("meta"):
                build_inverse(name, source, target, options, {**model.constants, **statistics})


def _sites_in_words(sites: Sequence[Site]) -> str:
    """``blocks.3 output``, ``the model output [logits, pred_boxes]``, or, through several modules, what they share and
    then each: ``encoder: aifi.0, pan_blocks.0 output``."""
    (side, *_), paths = dict.fromkeys(site.side for site in sites), dict.fromkeys(site.path for site in sites)
    fields = ", ".join(str(site.field) for site in sites if site.field is not None)
    where = next(iter(paths)) or "the model"
    if len(paths) > 1:
        parts = [path.split(".") for path in paths]
        shared = sum(1 for _ in itertools.takewhile(lambda words: len(set(words)) == 1, zip(*parts, strict=False)))
        where = ".".join(parts[0][:shared]) + ": " * bool(shared) + ", ".join(".".join(part[shared:]) for part in parts)
    return f"{where} {side}" + (f" [{fields}]" if fields else "")


def list_zoo() -> dict[str, dict[str, Any]]:
    """The cards of the models that ship with the package, with a ``summary`` of their figures."""
    cards = {}
    for name in shipped_names():
        card = shipped_card(name)
        figures = ", ".join(
            f"{name} {value:.3f}" for name, value in card["figures"].items() if isinstance(value, float)
        )
        cards[name.removeprefix("zoo/")] = {**card, "summary": figures}
    return cards

"""What there is: models, and their stages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backsight.core import Site, Spec, UserError
from backsight.engine import StagedModel
from backsight.inverses import build_inverse
from backsight.io import write_text
from backsight.models import MODELS, Family, blueprint, load_model, propose_for
from backsight.options import ModelOptions, parse_size
from backsight.shipped import shipped_names
from backsight.verification import verify


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


def propose_spec(name: str, options: ModelOptions, path: Path) -> list[str]:
    """Write a spec to begin with for the model ``name`` to ``path``; what could not be told comes back in words.

    Raises:
        UserError: ``path`` is there, or no stage was found.
    """
    if path.exists():
        raise UserError(f"{path} is there and may hold your changes: choose another name for the proposal")
    proposal = propose_for(name, parse_size(options.size), options.weights, _wrong_sites)
    write_text(path, proposal.text)
    return proposal.unknown


def _wrong_sites(model: StagedModel) -> list[str]:
    """The stages, and the first layers of these, that do not prove right: the other layers are like the first."""
    names = [name for stage in model.spec.stages for name in (*[f"{stage.name}.0"][: len(stage.layers)], stage.name)]
    return [check.name for check in verify(model, names=names) if not check.passed]


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

"""How a model of one's own is staged: a YAML file, the same as a dictionary, or a Spec."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from backsight.core import IMAGE, Pixels, Site, Spec, Stage, UserError
from backsight.io import plain, read_yaml
from backsight.validation import build, check_names, convert, nearest


@dataclass(frozen=True)
class Answer:
    """Where the prediction is in the model's output: the field of the ``logits`` (None: the output itself) and, for a
    detector, of the ``boxes`` (cx, cy, w, h in 0..1). ``scores`` is ``softmax`` (the last class is "no object") or
    ``sigmoid``."""

    logits: int | str | None = None
    boxes: int | str | None = None
    scores: Literal["softmax", "sigmoid"] = "softmax"


@dataclass(frozen=True)
class OwnSpec:
    """All that a spec says: the stages, the pixels, where the prediction is, the names of the classes, and keyword
    arguments of every forward pass; ``image_argument`` is the one that takes the images, None for the first. ``raw`` is
    the same in the types of JSON, None where it came as a Spec."""

    spec: Spec
    pixels: Pixels
    answer: Answer = Answer()
    labels: Mapping[int, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    image_argument: str | None = None
    raw: Mapping[str, Any] | None = None


TOP = ("family", "task", "pixels", "prediction", "labels", "arguments", "image_argument", "stages")
STAGE = ("name", "site", "layers", "inverse", "variants", "prefix", "levels", "gridded", "classes", "scores")


def read_spec(given: str | Path | Mapping[str, Any]) -> OwnSpec:
    """The spec in a YAML file, or in a dictionary of the same form.

    Raises:
        UserError: no such file, not YAML, an unknown key or value (the nearest is offered), or a key that is missing.
    """
    where = "the spec" if isinstance(given, Mapping) else str(given)
    if not isinstance(given, Mapping) and not Path(given).is_file():
        raise UserError(f"no spec at {given}: `backsight stages MODEL --propose {given}` writes one to begin with")
    raw = plain(given, where) if isinstance(given, Mapping) else read_yaml(Path(given), "correct it")
    check_names(raw, TOP, where)
    for name in ("pixels", "stages"):
        if not raw.get(name):
            raise UserError(
                f"{where} has no '{name}': `backsight stages MODEL --propose FILE` writes one to begin with"
            )
    stages = tuple(_stage(each, where) for each in _listed(raw["stages"]))
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1 or name == IMAGE or not name.replace("_", "").replace("-", "").isalnum():
            raise UserError(
                f"{where} has a stage '{name}': names are letters, digits and _, each one once, not 'image'"
            )
    prediction = raw.get("prediction")
    prediction = prediction if isinstance(prediction, Mapping) else {"logits": prediction}
    spec = {"family": "own", "task": "features", **{name: raw[name] for name in ("family", "task") if name in raw}}
    return OwnSpec(
        build(Spec, {**spec, "stages": stages}, where),
        build(Pixels, raw["pixels"], f"'pixels' of {where}"),
        build(Answer, prediction, f"'prediction' of {where}"),
        _labels(raw.get("labels") or {}, where),
        _arguments(raw.get("arguments") or {}, f"'arguments' of {where}"),
        raw.get("image_argument"),
        raw,
    )


def expand(spec: Spec, module: nn.Module) -> Spec:
    """``spec`` with every ``blocks.*`` replaced by the children of ``blocks``, and every path found in ``module``.

    Raises:
        UserError: a path that names no submodule; the nearest is offered.
    """
    known = dict(module.named_modules())

    def found(site: Site) -> list[Site]:
        parent, star = (site.path[:-2], True) if site.path.endswith(".*") else (site.path, False)
        if parent not in known:
            raise UserError(f"the model has no submodule '{parent}': {nearest(parent, filter(None, known))}")
        children = [f"{parent}.{name}" for name, _ in known[parent].named_children()]
        return [replace(site, path=path) for path in children] if star else [site]

    stages = [
        replace(
            stage,
            sites=tuple(site for each in stage.sites for site in found(each)),
            layers=tuple(
                part
                for each in stage.layers
                for part in (found(each) if isinstance(each, Site) else [tuple(itertools.chain(*map(found, each)))])
            ),
        )
        for stage in spec.stages
    ]
    return replace(spec, stages=tuple(stages))


def _stage(given: Any, where: str) -> Stage:
    given = convert(given, Mapping, f"a stage of {where}")
    where = f"stage '{given.get('name', '?')}' of {where}"
    check_names(given, STAGE, where)
    if not given.get("site"):
        raise UserError(f"{where} has no 'site': write the path of a submodule, as blocks.11")
    sites = tuple(_site(each, {}, where) for each in _listed(given["site"]))
    inherited = {name: getattr(sites[0], name) for name in ("pattern", "tokens", "windows")}
    layers = tuple(_site(each, inherited, where) for each in _listed(given.get("layers") or []))
    inverses = {"": given["inverse"]} if given.get("inverse") else {}
    inverses |= convert(given.get("variants") or {}, Mapping, f"'variants' of {where}")
    kept = {name: value for name, value in given.items() if name not in ("site", "layers", "inverse", "variants")}
    plans = {name: _inverse(value, where) for name, value in inverses.items()}
    return build(Stage, {**kept, "sites": sites, "layers": layers, "inverses": plans}, where)


def _site(given: Any, inherited: Mapping[str, Any], where: str) -> Site:
    given = {"path": given} if isinstance(given, str) else convert(given, Mapping, f"a site of {where}")
    return build(Site, {**inherited, **given}, f"a site of {where}")


def _inverse(given: Any, where: str) -> tuple[str, dict[str, Any]]:
    given = {"name": given} if isinstance(given, str) else dict(convert(given, Mapping, f"an inverse of {where}"))
    if not isinstance(given.get("name"), str):
        raise UserError(f"an inverse of {where} has no 'name': write one of those in docs/models.md, as blocks")
    return given.pop("name"), given


def _labels(given: Any, where: str) -> dict[int, str]:
    """The names of the classes by number, from a list, or from numbers and names."""
    named = dict(enumerate(given)) if isinstance(given, list | tuple) else given
    if not isinstance(named, Mapping) or not all(str(key).isdecimal() for key in named):
        raise UserError(f"'labels' of {where} is {given!r}: write a list of names, or lines 'number: name', as 0: cat")
    return {int(key): str(word) for key, word in named.items()}


def _arguments(given: Any, where: str) -> dict[str, Any]:
    """Keyword arguments; ``{tensor: [[1, 2]]}`` is how YAML writes a tensor."""

    def read(name: str, value: Any) -> Any:
        if not (isinstance(value, Mapping) and value.keys() == {"tensor"}):
            return value
        try:
            return torch.tensor(value["tensor"])
        except (TypeError, ValueError) as error:
            raise UserError(f"'{name}' in {where} is no tensor: write numbers in rows of equal length") from error

    return {name: read(name, value) for name, value in convert(given, Mapping, where).items()}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]

"""A model from no library: its module, and a spec that says where its stages are."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from backsight.arrange import fields_of, pick_argument, read_field, to_features
from backsight.core import Pixels, Site, Spec, UserError
from backsight.engine import RANDOM, StagedModel
from backsight.io import align
from backsight.models.answers import reader
from backsight.models.checkpoints import fill, read_state
from backsight.models.family import Read
from backsight.models.shape_tracing import ShapeTrace, fitting_patterns, trace_shapes
from backsight.models.spec import OwnSpec, expand, read_spec
from backsight.validation import nearest

SpecLike = str | Path | Mapping[str, Any] | Spec
"""A YAML file, a dictionary of the same form, or a Spec."""


def stage_by_spec(
    module: nn.Module,
    spec: SpecLike,
    *,
    pixels: Pixels | None = None,
    size: tuple[int, int] | None = None,
    name: str | None = None,
    weights: str = "given",
    read: Read | None = None,
) -> StagedModel:
    """:func:`~backsight.models.stage` by a ``spec``; one pass over random images checks that all its sites are there.

    Raises:
        UserError: as :func:`~backsight.models.stage`.
    """
    if isinstance(spec, Spec):
        if pixels is None:
            raise UserError("a Spec does not say what images the model takes: give pixels=Pixels(size=(H, W), ...)")
        own = OwnSpec(spec, pixels)
    else:
        own = read_spec(spec)
    pixels = pixels or own.pixels
    pixels, module = replace(pixels, size=size or pixels.size), unwrapped(module)
    found = expand(own.spec, module)
    seen = trace_shapes(module, pixels, own.arguments, own.image_argument)
    for each in found.stages:
        for label, sites in each.cuts.items():
            _check_cut(label, sites, [_check(site, module, seen) for site in sites], seen.size)
    return StagedModel(
        module,
        found,
        pixels,
        name=name or found.family,
        read=read or (None if found.task == "features" else reader(own.answer, own.labels, found.task, seen.output)),
        weights=weights,
        arguments=own.arguments,
        image_argument=own.image_argument,
        reopen={} if own.raw is None else {"spec": own.raw},
    ).fitting(pixels.fit)


def load_own(
    name: str,
    spec: SpecLike | None,
    *,
    size: tuple[int, int] | None = None,
    weights: Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
) -> StagedModel:
    """The model ``my_module.py:build``, staged by ``spec``, as :func:`~backsight.models.load_model` opens it."""
    pixels = None if spec is None or isinstance(spec, Spec) else read_spec(spec).pixels
    module = build_own(name, size or (pixels.size if pixels else None), seed)
    if spec is None:
        spec = _spec_beside(name, module)
    if weights is not None:
        fill(module, read_state(weights), str(weights))
    align(module)
    words = str(weights) if weights is not None else RANDOM if random_weights else name
    staged = stage_by_spec(module, spec, size=size, name=name, weights=words)
    staged.reopen["place"] = place(name)
    return staged


def unwrapped(module: nn.Module) -> nn.Module:
    """``module`` out of what torch.compile, DataParallel or DistributedDataParallel put around it: the paths of its
    sites are its own, and hooks on what is compiled would never run."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _spec_beside(name: str, module: nn.Module) -> Mapping[str, Any]:
    """What the function ``spec`` in the file of ``my_module.py:build`` says of ``module``, as a dictionary."""
    path = file_of(name)
    function = getattr(sys.modules[_module_name(path)], "spec", None)
    if not callable(function):
        raise UserError(
            f"{name} needs --spec FILE, or a function spec(module) in its file, to say where its stages are: "
            f"`backsight stages {name} --propose FILE` writes one to begin with"
        )
    found = _guarded(path, function, module)
    if not isinstance(found, Mapping):
        raise UserError(
            f"{path}:spec gives a {type(found).__name__}: a dictionary of the form of a YAML spec is wanted"
        )
    return found


def place(name: str) -> str:
    """A digest of where the file of ``my_module.py:build`` is: a run knows it again, and does not tell the path."""
    return hashlib.sha256(str(file_of(name).resolve()).encode()).hexdigest()


# ---- what is at the sites


def _check_cut(name: str, sites: Sequence[Site], values: Sequence[Any], size: tuple[int, int]) -> None:
    """Refuse several sites whose shapes cannot be joined."""
    try:
        to_features(values, sites, size)
    except RuntimeError as error:
        shapes = [to_features([each], [site], size).shape for each, site in zip(values, sites, strict=True)]
        found = " and ".join(f"{n} x {d} at '{site.path}'" for (_, n, d), site in zip(shapes, sites, strict=True))
        raise UserError(
            f"the sites of '{name}' cannot be joined, {found} (tokens x width): those of one module need equal tokens, "
            "those of several equal widths"
        ) from error


def _check(site: Site, module: nn.Module, seen: ShapeTrace) -> Any:
    """What stands at a site, as shapes; refused if it is never visited, has no such field, or another arrangement than
    its pattern."""
    value = _value_at(site, module, seen)
    where = f"the {site.side} of '{site.path}'" + ("" if site.field is None else f" [{site.field}]")
    names = fields_of(value)
    maps = [read_field(value, name) for name in names] if names else [value]
    if not all(isinstance(each, Tensor) for each in maps):
        inside = f", which has {', '.join(map(str, names))}" if names else ""
        raise UserError(f"{where} is no tensor but a {type(value).__name__}{inside}: name its 'field'")
    for each in maps:
        fitting = fitting_patterns(tuple(each.shape), seen.size)
        if site.pattern not in fitting:
            offer = (
                f"'{fitting[0]}' fits" if fitting else "tokens are 'b n d', maps 'b h w d' or 'b d h w', one is 'b d'"
            )
            raise UserError(f"the pattern '{site.pattern}' does not fit {where}, of shape {tuple(each.shape)}: {offer}")
    return value


def _value_at(site: Site, module: nn.Module, seen: ShapeTrace) -> Any:
    if site.path not in seen.visits:
        raise UserError(f"a forward pass never comes by '{site.path}': take another submodule for this site")
    visits = seen.visits[site.path]
    if (site.call is None and len(visits) > 1) or (site.call or 0) >= len(visits):
        wrong = "say which call is meant" if site.call is None else f"there is no call {site.call}"
        raise UserError(f"a forward pass runs '{site.path}' {len(visits)} times: {wrong}, call: 0 is the first")
    visit = visits[site.call or 0]
    try:
        if site.side == "output":
            return read_field(visit.output, site.field)
        return pick_argument(module.get_submodule(site.path), visit.args, dict(visit.kwargs), site.field)[0]
    except (KeyError, IndexError, TypeError) as error:
        given = {**dict(enumerate(visit.args)), **visit.kwargs}
        has = [str(name) for name in fields_of(visit.output if site.side == "output" else given)]
        raise UserError(
            f"the {site.side} of '{site.path}' has no field '{site.field}': {nearest(str(site.field), has)}"
        ) from error


# ---- models from a file of the user's own: ``my_module.py:build``


_OWN = re.compile(r"(?P<file>.+\.py)(?::(?P<function>\w*))?")


def is_own(name: str) -> bool:
    """Whether ``name`` means a user's own file: ``FILE.py:FUNCTION``, or one that lacks its function."""
    return _OWN.fullmatch(name) is not None


def file_of(name: str) -> Path:
    """The file in ``my_module.py:build``."""
    found = _OWN.fullmatch(name)
    return Path(found["file"] if found else name)


def build_own(name: str, size: tuple[int, int] | None = None, seed: int = 0) -> nn.Module:
    """Run the file in ``my_module.py:build``, and call its function.

    A function that takes ``size`` is given the image size (H, W), where one is known. Random numbers are drawn from
    ``seed``, so that a model without trained weights is the same every time.

    Raises:
        UserError: no such file or function, an error in them, or what comes back is no ``torch.nn.Module``.
    """
    path = file_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build = _find(_run(path), name.removeprefix(str(path)).removeprefix(":"), path)
        takes_size = size is not None and "size" in _parameters(build)
        built = (
            build if isinstance(build, nn.Module) else _guarded(path, build, **({"size": size} if takes_size else {}))
        )
    if not isinstance(built, nn.Module):
        raise UserError(f"{name} gives a {type(built).__name__}, not a torch.nn.Module: return the model itself")
    return built


def _run(path: Path) -> ModuleType:
    """The module in the file at ``path``, fresh; its folder is importable from, as when Python runs a script."""
    if not path.is_file():
        raise UserError(f"no file {path}: a model of your own is named FILE.py:FUNCTION, as my_module.py:build")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec: Any = importlib.util.spec_from_file_location(_module_name(path), path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there for the module that they are in
    _guarded(path, spec.loader.exec_module, module)
    return module


def _module_name(path: Path) -> str:
    return f"_own_{path.stem}"


def _find(module: ModuleType, function: str, path: Path) -> Callable[..., Any]:
    found = getattr(module, function, None) if function else None
    if callable(found):
        return found
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    functions = [name for name in own if callable(vars(module)[name]) and not name.startswith("_")]
    if not function:
        first = "build" if "build" in functions or not functions else functions[0]
        raise UserError(f"{path} alone names no model: add the function that gives it, as {path}:{first}")
    raise UserError(f"{path} has no function '{function}': {nearest(function, functions)}")


def _parameters(build: Callable[..., Any]) -> Iterable[str]:
    try:
        return inspect.signature(build).parameters
    except (TypeError, ValueError):  # some built-in callables do not tell
        return ()


def _guarded(path: Path, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the user's code; an error in it is told in one line, with the line of the file that it came through."""
    try:
        return function(*args, **kwargs)
    except (Exception, SystemExit) as error:
        calls = traceback.extract_tb(error.__traceback__)
        lines = [each.lineno for each in calls if Path(each.filename).resolve() == path.resolve()]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        reason = (str(error).splitlines() or [""])[0]
        place = f"{path}:{line}" if line else f"{path}"
        raise UserError(f"{place}: {type(error).__name__}: {reason}; mend the file, backsight only runs it") from error

"""Models from a file of the user's own: ``my_module.py:build``.

The file is run, and only because the user named it: nothing here is called for a name that came out of a file.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from backsight.core import UserError
from backsight.validation import nearest

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
    spec: Any = importlib.util.spec_from_file_location(f"_own_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there for the module that they are in
    _guarded(path, spec.loader.exec_module, module)
    return module


def _find(module: ModuleType, function: str, path: Path) -> Callable[..., Any]:
    found = getattr(module, function, None) if function else None
    if callable(found):
        return found
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    functions = [name for name in own if callable(vars(module)[name]) and not name.startswith("_")]
    if not function:
        raise UserError(f"{path} alone names no model: add the function that gives it, as {path}:{_first(functions)}")
    raise UserError(f"{path} has no function '{function}': {nearest(function, functions)}")


def _first(functions: list[str]) -> str:
    return "build" if "build" in functions or not functions else functions[0]


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

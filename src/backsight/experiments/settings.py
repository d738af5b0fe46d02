"""The settings of experiments: keyword arguments of ``measure``, whose types say what they may be."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import yaml

from backsight.core import UserError


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be, both ends included."""

    least: float
    most: float = math.inf

    def __str__(self) -> str:
        return f"at least {self.least:g}" if self.most == math.inf else f"from {self.least:g} to {self.most:g}"


AnyNumber = Annotated[int, Range(0)]
"""How many, and none will do."""

Number = Annotated[int, Range(1)]
"""How many, one at least."""

Share = Annotated[float, Range(0, 1)]
"""A part of the whole, or a probability."""


def read_settings(measure: Callable[..., Any], texts: Sequence[str]) -> dict[str, Any]:
    """``["num_pictures=3", "shares=[0.1, 0.5]"]`` -> the keyword arguments of an experiment.

    Values are written as in YAML, and have the type of the setting's default.

    Raises:
        UserError: no such setting, or a value of another type.
    """
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"'{text}' is no setting: write NAME=VALUE, as num_pictures=3")
        try:
            settings[name] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as error:
            raise UserError(f"the value of '{text}' cannot be read: write it as in YAML, as [0.1, 0.5]") from error
    return check_settings(measure, settings)


def check_settings(measure: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, numbers and single values of lists made to fit the defaults of ``measure``.

    Raises:
        UserError: no such setting, or a value of another type or out of its :class:`Range`.
    """
    known = {
        name: each for name, each in inspect.signature(measure).parameters.items() if each.default is not each.empty
    }
    for name in settings:
        if name not in known:
            raise UserError(f"no setting '{name}': there are {', '.join(known) or 'none'}")
    found = {name: _fitted(name, value, known[name].default) for name, value in settings.items()}
    types = get_type_hints(measure, include_extras=True) if found else {}
    for name, value in found.items():
        for allowed in getattr(types.get(name), "__metadata__", ()):
            if not allowed.least <= value <= allowed.most:
                raise UserError(f"{name}={value}: it has to be {allowed}")
    return found


def _fitted(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, list | tuple):
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not default and all(isinstance(each, str | Path) for each in values):
            return values  # an empty default is that of names or paths
        return [_fitted(name, each, default[0] if default else "") for each in values]
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise UserError(f"{name}={value}: it is to be of the kind of {default!r}")
    return value

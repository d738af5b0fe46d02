"""The settings of experiments: keyword arguments of ``measure``, whose types say what they may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backsight.core import UserError
from backsight.validation import AnyNumber, Number, Range, Share, convert_arguments, parse

__all__ = ["AnyNumber", "Number", "Range", "Share", "check_settings", "read_settings"]


def read_settings(measure: Callable[..., Any], texts: Sequence[str]) -> dict[str, Any]:
    """``["num_pictures=3", "shares=[0.1, 0.5]"]`` -> the keyword arguments of an experiment; values are as in YAML.

    Raises:
        UserError: no such setting, or a value of another type.
    """
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"'{text}' is no setting: write NAME=VALUE, as num_pictures=3")
        settings[name] = parse(value, name)
    return check_settings(measure, settings)


def check_settings(measure: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as ``measure`` takes them.

    Raises:
        UserError: no such setting, or a value of another type or out of its :class:`~backsight.validation.Range`.
    """
    return convert_arguments(measure, settings, "the experiment")

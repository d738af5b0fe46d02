"""The files that a run or an experiment left, read so that a damaged one is told in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from backsight.core import UserError
from backsight.files import read_tensors


def read_json(path: Path, mend: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object in ``path``, which has all ``names``; ``mend`` says what the user can do where it has not.

    Raises:
        UserError: it is damaged, something else, or lacks one of ``names``.
    """
    return read_object(read_text(path, mend), str(path), mend, names)


def read_object(text: str, where: str, mend: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """:func:`read_json` of a text, which came from ``where``."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not JSON, or cut short ({error}): {mend}") from error
    return _named(value, where, mend, names)


def read_yaml(path: Path, mend: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """:func:`read_json`, of a file in YAML."""
    import yaml

    try:
        value = yaml.safe_load(read_text(path, mend))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}," if mark else ""
        raise UserError(f"{path}{line} is not YAML, or cut short: {mend}") from error
    return _named(value, str(path), mend, names)


def read_tensor(path: Path, name: str, mend: str) -> Tensor:
    """The tensor called ``name`` in a safetensors file.

    Raises:
        UserError: the file is damaged, or has no such tensor.
    """
    from safetensors import SafetensorError

    try:
        return read_tensors(path)[name]
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} is no safetensors file with '{name}' in it, or cut short: {mend}") from error


def in_words(error: Exception) -> str:
    """What an error says of the content of a file, without the names of the program."""
    if isinstance(error, KeyError):
        return f"it has no {error}"
    unknown = re.search(r"unexpected keyword argument ('\w+')", str(error))
    missing = re.search(r"missing \d+ required .*arguments?: (.*)", str(error))
    if unknown or missing:  # of a dataclass
        return f"it has {unknown[1]}, which is unknown" if unknown else f"it has no {missing[1] if missing else ''}"
    if isinstance(error, TypeError | AttributeError):
        return "a part of it is of another kind"
    return str(error)


def read_text(path: Path, mend: str) -> str:
    """The text of a file in UTF-8.

    Raises:
        UserError: it is something else.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text: {mend}") from error


def _named(value: Any, where: str, mend: str, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} does not hold names and values: {mend}")
    for name in names:
        if name not in value:
            raise UserError(f"{where} has no '{name}': {mend}")
    return value

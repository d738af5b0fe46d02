"""Files: written whole (under a temporary name, flushed, then renamed), and read with one line for a damaged one."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar

from torch import Tensor, nn
from typing_extensions import Buffer

from backsight.core import UserError
from backsight.validation import build

T = TypeVar("T")

MOST_VALUES = 100_000
"""Values in a file of YAML."""

_SURROGATES = re.compile("[\ud800-\udfff]")
"""What Python reads for the bytes of a name that is not UTF-8; no file can be written with it."""

ALIGNMENT = 64
"""Bytes: torch's own memory begins at multiples of this, tensors of a mapped file anywhere."""


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call ``write`` with a temporary path beside ``path``, then put that file in place of ``path``.

    Whoever reads ``path`` sees the old content or the new one, never a part; a failed ``write`` leaves nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=f".tmp{path.suffix}")
    except OSError as error:  # it names the temporary file, of which nobody knows
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:  # a write to an open file does not say which
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


class Remembering(FileIO):
    """A file that keeps the error of a failed write, for writers that report it as something else."""

    error: OSError | None = None

    def write(self, data: Buffer, /) -> int:
        """Write all of ``data``."""
        try:
            view = memoryview(data).cast("B")
            written = 0
            while written < len(view):
                written += super().write(view[written:]) or 0
        except OSError as error:
            self.error = error
            raise
        return written


def write_checkpoint(path: str | Path, state: Any) -> Path:
    """Write ``state`` with ``torch.save``, whole. A full disk is an ``OSError``, which torch alone would hide."""
    import torch

    def write(temporary: Path) -> None:
        with Remembering(temporary, "w") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                raise file.error or error from error

    return write_whole(path, write)


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write ``content``, whole."""
    return write_whole(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8, whole."""
    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON, whole. NaN is refused: it is not JSON."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- reading


def digest(path: Path) -> str:
    """The SHA-256 of a file, read in parts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(name: str) -> str:
    """A name with a replacement character for each byte of it that is not UTF-8, which nothing could write."""
    return _SURROGATES.sub("\ufffd", name)


def read_record(path: Path, kind: type[T], fix: str) -> T:
    """The dataclass ``kind`` from the JSON or YAML in ``path``; ``fix`` says what the user can do where it cannot be.

    Raises:
        UserError: the file is damaged, lacks a field, or has one of another type or out of its range.
    """
    found = read_yaml(path, fix) if path.suffix in (".yaml", ".yml") else read_json(path, fix)
    return as_record(found, kind, str(path), fix)


def as_record(value: Any, kind: type[T], where: str, fix: str) -> T:
    """:func:`read_record` of a value, which came from ``where``."""
    try:
        return build(kind, value, where)
    except UserError as error:
        raise UserError(f"{error.args[0]}; {fix}") from error


def read_json(path: Path, fix: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object in ``path``, which has all ``names``; ``fix`` says what the user can do where it has not.

    Raises:
        UserError: it is damaged, something else, or lacks one of ``names``.
    """
    return read_object(read_text(path, fix), str(path), fix, names)


def read_object(text: str, where: str, fix: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """:func:`read_json` of a text, which came from ``where``."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON, or cut short ({error}): {fix}") from error
    return _named(value, where, fix, names)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it has {constant}")


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects in ``path``, one a line, and how many lines are none: cut short, or written by others. No file
    has no lines."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    found = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            found += [value] if isinstance(value := json.loads(line), dict) else []
    return found, len(lines) - len(found)


def read_yaml(path: Path, fix: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """:func:`read_json`, of a file in YAML; its values are those that JSON has too, others (dates) are text.

    Raises:
        UserError: it is damaged, something else, too large or deep, or lacks one of ``names``.
    """
    import yaml

    try:
        value = yaml.safe_load(read_text(path, fix))
    except (yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}," if mark else ""
        raise UserError(f"{path}{line} is not YAML, or cut short: {fix}") from error
    return _named(plain(value, str(path)), str(path), fix, names)


def plain(value: Any, where: str) -> Any:
    """A copy of ``value`` in the types of JSON: names, and values of other types, become text.

    Raises:
        UserError: it is too large, or too deep.
    """
    numbers = itertools.count(1)

    def copy(value: Any, depth: int) -> Any:
        if next(numbers) > MOST_VALUES or depth > 100:  # aliases make much of little, or lead back to themselves
            raise UserError(f"{where} has more than {MOST_VALUES} values, or more than 100 levels")
        if isinstance(value, Mapping):
            return {str(key): copy(each, depth + 1) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [copy(each, depth + 1) for each in value]
        if isinstance(value, Tensor):
            return {"tensor": value.tolist()}
        return value if isinstance(value, str | int | float | bool | NoneType) else str(value)

    return copy(value, 0)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in aligned memory: kernels round otherwise, and some are slower, elsewhere.

    Raises:
        SafetensorError: it is no such file, or cut short.
    """
    from safetensors.torch import load_file

    return {name: _aligned(tensor) for name, tensor in load_file(path).items()}


def align(module: nn.Module) -> None:
    """Copy those parameters and buffers of ``module`` to aligned memory that a library has left in a mapped file."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = _aligned(tensor.data)  # the tensor stays the same object: what is tied stays tied


def _aligned(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def read_tensor(path: Path, name: str, fix: str) -> Tensor:
    """The tensor called ``name`` in a safetensors file.

    Raises:
        UserError: the file is damaged, or has no such tensor.
    """
    from safetensors import SafetensorError

    try:
        return read_tensors(path)[name]
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} is no safetensors file with '{name}' in it, or cut short: {fix}") from error


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


def read_text(path: Path, fix: str) -> str:
    """The text of a file in UTF-8.

    Raises:
        UserError: it is something else.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text: {fix}") from error


def _named(value: Any, where: str, fix: str, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} does not hold names and values: {fix}")
    for name in names:
        if name not in value:
            raise UserError(f"{where} has no '{name}': {fix}")
    return value

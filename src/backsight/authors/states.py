"""Finding the authors' files, and the tensors of each network in them. Nothing here unpickles."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from backsight.core import UserError
from backsight.models.checkpoints import read_content

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
SHOWN = 3
"""Names of tensors in a message, at the most."""


@dataclass(frozen=True)
class Published:
    """One published network: the ``file`` it comes from, its ``label`` there, and its ``tensors`` by name."""

    file: Path
    label: str
    tensors: Mapping[str, Tensor]

    @property
    def origin(self) -> str:
        """Where it comes from, in words for a message."""
        return str(self.file) if self.label == self.file.stem else f"{self.file} ({self.label})"

    def size(self, name: str, axis: int = 0) -> int:
        """The length of a tensor along ``axis``.

        Raises:
            UserError: it is missing, or has no such axis.
        """
        self.expect([name])
        if self.tensors[name].dim() <= axis:
            raise self.refused(misshaped=[f"{name}, {_shape(self.tensors[name])}"])
        return self.tensors[name].shape[axis]

    def expect(self, names: Sequence[str]) -> None:
        """Refuse the network if it lacks one of the tensors ``names``.

        Raises:
            UserError: it does; the message names the first of them.
        """
        missing = [name for name in names if name not in self.tensors]
        if missing:
            raise self.refused(missing=missing)

    def compare(self, shapes: Mapping[str, Tensor]) -> None:
        """Refuse the network unless its tensors are those of ``shapes``: no more, no fewer, each of that shape.

        Raises:
            UserError: a tensor is missing, or is not of this network, or has another shape.
        """
        missing = [name for name in shapes if name not in self.tensors]
        unexpected = [name for name in self.tensors if name not in shapes]
        misshaped = [
            f"{name}, {_shape(self.tensors[name])} instead of {_shape(shapes[name])}"
            for name in shapes
            if name in self.tensors and self.tensors[name].shape != shapes[name].shape
        ]
        if missing or unexpected or misshaped:
            raise self.refused(missing, unexpected, misshaped)

    def refused(
        self, missing: Sequence[str] = (), unexpected: Sequence[str] = (), misshaped: Sequence[str] = ()
    ) -> UserError:
        """One line that names the first tensors which keep this network from being read."""
        found = {"missing": missing, "not of this network": unexpected, "of another shape": misshaped}
        parts = [f"{len(names)} tensors {what} ({_first(names)})" for what, names in found.items() if names]
        return UserError(f"{self.origin} is no inverse that can be read: {'; '.join(parts)}")


def find_published(path: Path) -> list[Published]:
    """Every network below ``path``, in the order of the files' names.

    ``path`` is a file, or a folder with any number of them: ``.pt``, ``.pth``, ``.bin`` and ``.safetensors`` files, and
    whatever lies in a folder ``model_states``, as the authors' training leaves it. A checkpoint with several networks
    under ``model_states`` gives each of them; folders ``checkpoints`` are passed over, since they repeat these.

    Raises:
        UserError: nothing is there, a file holds no tensors, or more than tensors, or a part of another inverse.
    """
    if not path.exists():
        raise UserError(f"nothing at {path}: name a file or a folder of the authors' weights")
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if _is_weights(each, path))
    if not files:
        raise UserError(f"no weights in {path}: it should hold {', '.join(SUFFIXES)} files, or a folder model_states")
    found = [network for file in files for network in _read(file)]
    for network in found:
        _expect_modular(network, path)
    return found


def _expect_modular(network: Published, top: Path) -> None:
    """Refuse what is part of another inverse, by the names that the authors' scripts give it.

    Raises:
        UserError: a half of an encoder, or a network of classic inversion: both look as a whole modular inverse does.
    """
    below = network.file.relative_to(top).parts if network.file != top else (network.file.name,)
    words = {word for part in (top.name, *below, network.label) for word in re.split(r"[^a-z]+", part.lower())}
    if "sub" in words:
        raise UserError(
            f"{network.origin} is one part of an encoder's inverse, which the authors trained in two: give the inverse "
            "of the whole encoder"
        )
    if not words.isdisjoint({"classic", "classical"}):
        raise UserError(
            f"{network.origin} is of classic inversion, whose networks were trained as one: give those of a modular run"
        )


def _is_weights(path: Path, top: Path) -> bool:
    folders = path.relative_to(top).parts[:-1]
    named = path.suffix in SUFFIXES or (path.parent.name == "model_states" and not path.name.startswith("."))
    return path.is_file() and named and "checkpoints" not in folders


def _read(file: Path) -> list[Published]:
    content = read_content(file)
    for wrapper in ("model", "state_dict"):
        content = content.get(wrapper, content) if isinstance(content, dict) else content
    several = content.get("model_states") if isinstance(content, dict) else None
    states = several if isinstance(several, dict) else {file.stem: content}
    return [Published(file, str(label), _tensors(state, file, str(label))) for label, state in states.items()]


def _tensors(state: Any, file: Path, label: str) -> dict[str, Tensor]:
    """Tensors by name, without the prefixes that compiled and distributed modules add."""
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} ({label}) holds no state_dict: give a file of named tensors")
    return {str(name).removeprefix("_orig_mod.").removeprefix("module."): value for name, value in state.items()}


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"

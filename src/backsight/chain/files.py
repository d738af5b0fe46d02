"""What the folder of a chain holds: ``chain.json``, and a file of weights for each inverse, known by its digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from backsight.core import Layout, UserError
from backsight.io import read_tensors

FORMAT = 1
"""The version of the format of ``chain.json``; a later one is refused."""


def read_index(folder: Path) -> dict[str, Any]:
    """The ``model``, ``seed``, ``stages`` and ``inverses`` that ``chain.json`` in ``folder`` names.

    Raises:
        UserError: there is none, it is broken, or its format is newer than this version of the package.
    """
    path = folder / "chain.json"
    if not path.is_file():
        raise UserError(f"no chain in {folder}: a chain's folder holds chain.json and one .safetensors file an inverse")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = int(index["format"])
        if version <= FORMAT:
            return {name: index[name] for name in ("model", "seed", "stages", "inverses")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a chain's index: train the chain again, or fetch it again") from error
    raise UserError(f"{path} has format {version}, this version of backsight reads up to {FORMAT}: upgrade backsight")


def read_layout(saved: dict[str, Any]) -> Layout:
    """A layout from what JSON keeps of it."""
    saved = {"image": saved["width"] == 3, **saved}  # 0.1 did not say
    return Layout(**{**saved, "grids": tuple(tuple(grid) for grid in saved["grids"])})


def read_state(path: Path, expected: str) -> dict[str, Tensor]:
    """The weights of an inverse, in the file whose SHA-256 is ``expected``.

    Raises:
        UserError: it is missing, damaged, or no safetensors file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: the chain is incomplete, fetch or train it again")
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise UserError(f"{path} is damaged (its SHA-256 is not the one in chain.json): fetch or train it again")
    try:
        return read_tensors(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file: fetch or train the chain again") from error

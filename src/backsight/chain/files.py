"""What the folder of a chain holds: ``chain.json``, and a file of weights for each inverse, known by its digest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from backsight.core import Layout, Pixels, UserError, split_entry
from backsight.inverses import Inverse, build_inverse
from backsight.io import digest, read_json, read_record, read_tensors
from backsight.validation import AnyNumber, Positive, Range, Record, Side

FORMAT = 1
"""The version of the format of ``chain.json``; a later one is refused."""

FIX = "train the chain again, or fetch it again"
ENTRY = re.compile(r"[\w-]{1,99}(@[\w-]{1,99})?")
"""The names of inverses, and of their files: none leads out of the folder."""


@dataclass(frozen=True)
class SavedInverse(Record):
    """How one inverse is built, and the SHA-256 of the file of its weights."""

    inverse: str
    source: Layout
    target: Layout
    sha256: str
    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: Positive | None = None
    input_noise: Annotated[float, Range(0)] = 0.0


@dataclass(frozen=True)
class SavedModel(Record):
    """The forward model, as :func:`~backsight.chain.chain.describe` gives it."""

    name: str
    family: str
    weights: str
    stages: tuple[str, ...]
    size: tuple[Side, Side]
    pixels: Pixels
    digest: str
    reopen: Mapping[str, Any] = field(default_factory=dict)
    fine_tuned: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChainIndex(Record):
    """The content of ``chain.json``; ``inverses`` are by entry."""

    format: AnyNumber
    model: SavedModel
    seed: AnyNumber
    stages: tuple[str, ...]
    inverses: Mapping[str, SavedInverse]

    def __post_init__(self) -> None:
        for entry in self.inverses:
            if not ENTRY.fullmatch(entry) or split_entry(entry)[0] not in self.stages:
                raise UserError(f"'{entry}' is no inverse of a stage: these are {', '.join(self.stages)}")
        known = {}
        for entry, saved in self.inverses.items():  # 0.1 does not say which target is the image: the first stage's
            first = split_entry(entry)[0] == self.stages[0]
            known[entry] = replace(saved, target=replace(saved.target, image=first))
        object.__setattr__(self, "inverses", known)


def run_folders(folder: Path | None) -> Iterator[Path]:
    """Where a run or a shipped model keeps what is not in a chain: its folder, or above ``chains/<seed>``."""
    if folder is not None:
        yield folder
        yield from [parent for parent in list(folder.parents)[:2] if (parent / "chains").is_dir()]


def read_index(folder: Path) -> tuple[ChainIndex, dict[str, Any]]:
    """What ``chain.json`` in ``folder`` says, and its ``model`` as it stands there.

    Raises:
        UserError: there is none, it is broken, or its format is newer than this version of the package.
    """
    path = folder / "chain.json"
    if not path.is_file():
        raise UserError(f"no chain in {folder}: a chain's folder holds chain.json and one .safetensors file an inverse")
    raw = read_json(path, FIX, ("format", "model"))
    if isinstance(raw["format"], int) and raw["format"] > FORMAT:
        found = raw["format"]
        raise UserError(f"{path} has format {found}, this version of backsight reads up to {FORMAT}: upgrade backsight")
    return read_record(path, ChainIndex, FIX), raw["model"]


def read_inverse(path: Path, saved: SavedInverse) -> Inverse:
    """An inverse with its weights, which are in ``path``.

    Raises:
        UserError: the file is missing, damaged, or of other weights than these, or one is not finite.
    """
    state = _read_state(path, saved.sha256)
    with torch.device("meta"):  # takes no memory, whatever the index says
        planned = build_inverse(saved.inverse, saved.source, saved.target, saved.options).state_dict()
    if {name: tensor.shape for name, tensor in planned.items()} != {name: each.shape for name, each in state.items()}:
        raise UserError(f"{path} has other weights than chain.json says: {FIX}")
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path} has '{name}' with values that are not finite: {FIX}")
    inverse = build_inverse(saved.inverse, saved.source, saved.target, saved.options)
    inverse.load_state_dict(state)
    return inverse


def _read_state(path: Path, expected: str) -> dict[str, Tensor]:
    """The weights of an inverse, in the file whose SHA-256 is ``expected``."""
    if not path.is_file():
        raise UserError(f"{path} is missing: the chain is incomplete, fetch or train it again")
    if digest(path) != expected:
        raise UserError(f"{path} is damaged (its SHA-256 is not the one in chain.json): fetch or train it again")
    try:
        return read_tensors(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file: fetch or train the chain again") from error

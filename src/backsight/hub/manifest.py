"""The manifest of a repository: which files its chains consist of, and the SHA-256 of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backsight.core import UserError
from backsight.io import digest, read_record, write_json
from backsight.validation import AnyNumber, Record

MANIFEST = "manifest.json"
FORMAT = 1
"""The version of the manifest; a later one is refused."""
_LISTED = re.compile(
    r"chains/\d+/(?:chain\.json|[\w@-]+\.safetensors)|evaluation\.json|(?:mean_image|training_range)\.safetensors"
)
"""The only files that are ever read from a repository: none of them is a pickle, none lies outside its folder."""


@dataclass(frozen=True)
class Manifest(Record):
    """The content of the manifest."""

    format: AnyNumber
    sha256: Mapping[str, str]


def write_manifest(folder: Path) -> Path:
    """List every file below ``folder`` that a chain consists of in ``manifest.json``."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {path: digest(folder / path) for path in paths if _LISTED.fullmatch(path)}
    return write_json(folder / MANIFEST, {"format": FORMAT, "sha256": files})


def read_manifest(path: Path, name: str) -> dict[str, str]:
    """The SHA-256 of every file of the repository ``name``, by its path there.

    Raises:
        UserError: it is no manifest, or of a later version, or lists something else than a chain's files.
    """
    try:
        found = read_record(path, Manifest, "its owner should push the chains again")
    except UserError as error:
        raise UserError(f"the {MANIFEST} of {name} cannot be read: {error.args[0]}") from error
    files = dict(found.sha256)
    if found.format > FORMAT:
        raise UserError(
            f"the {MANIFEST} of {name} has format {found.format}, this version reads up to {FORMAT}: upgrade"
        )
    if strange := [file for file in files if not _LISTED.fullmatch(file)]:
        raise UserError(f"the {MANIFEST} of {name} lists '{strange[0]}', which is no file of a chain: nothing was read")
    if not any(file.endswith("/chain.json") for file in files):
        raise UserError(f"{name} holds no chains: its {MANIFEST} lists no chain.json")
    return files


def check_files(folder: Path, files: dict[str, str], name: str, listed: Sequence[str]) -> None:
    """Refuse a fetched ``folder`` unless each of ``files`` has its digest, and no chain but the ``listed`` is there.

    Raises:
        UserError: it is not as the manifest says; the message names the first file.
    """
    chains = [path.relative_to(folder).as_posix() for path in folder.glob("chains/*/chain.json")]
    wrong = [file for file, sha256 in files.items() if not (folder / file).is_file() or digest(folder / file) != sha256]
    for file in [*wrong, *(chain for chain in chains if chain not in listed)]:
        raise UserError(
            f"{file} of {name} is not what its {MANIFEST} says (SHA-256): delete {folder} and fetch it again, or ask "
            "its owner to push it again"
        )

"""Chains to the hub: one commit, so that nobody ever sees half of them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from backsight.core import UserError
from backsight.hub.card import public_facts, public_name, write_readme
from backsight.hub.fetch import explained
from backsight.hub.manifest import MANIFEST, write_manifest
from backsight.io import write_json, write_text
from backsight.results import Result

OWN = ("chains/", "pictures/", "evaluation.json", "mean_image.safetensors", "card.md", MANIFEST)
"""What a push replaces in the repository; other files of its owner stay."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
MOST_PICTURES = 6


class Saves(Protocol):
    """What is published: the inverses of one forward model and one seed."""

    seed: int
    model: dict[str, Any]

    def save(self, folder: str | Path) -> Path:
        """Write itself into ``folder``."""
        ...


def publish(
    chains: Sequence[Saves],
    repository: str,
    *,
    run: str | Path | None = None,
    pictures: Sequence[str | Path] = (),
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Give chains to the hub, as the repository ``owner/name``, which is made if there is none.

    Args:
        chains: one for each seed.
        repository: ``owner/name``.
        run: the folder of their run: its errors, mean image and ``figure.png`` go with them.
        pictures: picture files for the model card; of a folder that `backsight reconstruct` wrote, its ``figure.png``.
        private: make a new repository private. One that is there stays as it is.
        revision: a branch to write to, made if there is none.

    Returns:
        The address of the repository.

    Raises:
        UserError: no token, no network, a name that is not yours, or a picture that is not there.
    """
    from huggingface_hub import get_token

    if any("fine_tuned" in chain.model for chain in chains):
        raise UserError(
            "joint training gave these chains a forward model of their own, which is not published: push a modular run"
        )
    if repository.count("/") != 1 or not repository.isascii():
        raise UserError(f"'{repository}' is no name of a repository: write owner/name")
    if get_token() is None:
        raise UserError(f"no token to write to {repository}: log in with `hf auth login`, or set HF_TOKEN")
    shown = _pictures(pictures, None if run is None else Path(run))
    with tempfile.TemporaryDirectory(prefix="backsight-") as name:
        folder = Path(name)
        fill(folder, chains, repository, None if run is None else Path(run), shown)
        return _commit(folder, repository, private, revision)


def fill(folder: Path, chains: Sequence[Saves], repository: str, run: Path | None, pictures: Sequence[Path]) -> None:
    """Write all that a repository holds into ``folder``: chains, errors, pictures, manifest and model card.

    Nothing in it tells a path of this machine: of those, only the last part is kept.
    """
    for chain in chains:
        saved = chain.save(folder / "chains" / str(chain.seed)) / "chain.json"
        index = json.loads(saved.read_text(encoding="utf-8"))
        write_json(saved, {**index, "model": _without_paths(index["model"])})
    evaluation = _evaluation(run)
    if evaluation is not None:
        evaluation.write(folder / "evaluation.json")
    for name in ("mean_image.safetensors", "training_range.safetensors"):
        if run is not None and (run / name).is_file():
            shutil.copy(run / name, folder / name)
    for picture in pictures:
        (folder / "pictures").mkdir(exist_ok=True)
        shutil.copy(picture, folder / "pictures" / picture.name)
    write_manifest(folder)
    model = _without_paths(chains[0].model)
    names = [f"pictures/{picture.name}" for picture in pictures]
    write_text(
        folder / "README.md", write_readme(repository, model, [chain.seed for chain in chains], evaluation, names)
    )


def _without_paths(model: Mapping[str, Any]) -> dict[str, Any]:
    return {**model, **{what: public_name(str(model[what])) for what in ("name", "weights")}}


def _evaluation(run: Path | None) -> Result | None:
    """The run's errors as they are published: without the names of images, the command, and paths of this machine."""
    path = None if run is None else run / "evaluation.json"
    if path is None or not path.is_file():
        return None
    result = Result.load(path)
    cards = [{**public_facts(card), "training": public_facts(card.get("training", {}))} for card in result.subjects]
    measurements = [replace(each, labels=public_facts(each.labels)) for each in result.measurements]
    return replace(result, subjects=cards, measurements=measurements, images={}, command="")


def _pictures(given: Sequence[str | Path], run: Path | None) -> list[Path]:
    """The files to show, each under another name."""
    paths = [path / "figure.png" if path.is_dir() else path for path in map(Path, given)]
    if not paths and run is not None and (run / "figure.png").is_file():
        paths = [run / "figure.png"]
    fine = all(path.is_file() and path.suffix.lower() in PICTURES for path in paths)
    if not fine or len(paths) > MOST_PICTURES or len({path.name for path in paths}) < len(paths):
        raise UserError(
            f"{', '.join(map(str, paths))}: give up to {MOST_PICTURES} picture files ({', '.join(PICTURES)}), or "
            "folders with a figure.png, each under another name"
        )
    return paths


def _commit(folder: Path, repository: str, private: bool, revision: str | None) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    hub = HfApi(library_name="backsight")
    new = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with explained(repository, revision, writing=True):
        hub.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repository, branch=revision, exist_ok=True)
        old = [path for path in hub.list_repo_files(repository, revision=revision) if path.startswith(OWN)]
        operations: list[Any] = [CommitOperationAdd(path, folder / path) for path in new]
        operations += [CommitOperationDelete(path) for path in old if path not in new]
        hub.create_commit(repository, operations, commit_message="Chains of inverses", revision=revision)
    return f"{hub.endpoint}/{repository}" + (f"/tree/{revision}" if revision else "")

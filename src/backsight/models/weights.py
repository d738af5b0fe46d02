"""Finding a model's files: the hub, a cache, a folder, a file of weights. Nothing here unpickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backsight.core import UserError

CONFIGURATION: tuple[str, ...] = ("config.json", "preprocessor_config.json", "processor_config.json")
WEIGHTS: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
INDICES: tuple[str, ...] = tuple(f"{name}.index.json" for name in WEIGHTS)
"""Of weights in several files (shards): which tensor is in which."""


def download(hub_name: str, *, weights: bool = True) -> Path:
    """The local folder of a model of the hub: from the cache if it is there, else fetched. Without its ``weights``, the
    configuration alone.

    Raises:
        UserError: it is not cached and cannot be fetched; the message says what to put where.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    files = [*CONFIGURATION, *((*WEIGHTS, *INDICES, "model-*.safetensors", "pytorch_model-*.bin") if weights else ())]
    try:
        return _complete(Path(snapshot_download(hub_name, allow_patterns=files, local_files_only=True)), weights)
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    needed = "config.json and model.safetensors" if weights else "config.json"
    by_hand = f"download {needed} of {hub_name}, and name the folder instead of the model"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{hub_name} is not in the local cache and HF_HUB_OFFLINE is set: unset it, or {by_hand}")
    try:
        HfApi().model_info(hub_name, timeout=10)
        return _complete(Path(snapshot_download(hub_name, allow_patterns=files)), weights)
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise UserError(f"the hub answers {status} for '{hub_name}': check the name, or {by_hand}") from error
    except Exception as error:  # the hub's client changes its network library, and with it the errors
        raise UserError(
            f"no network ({type(error).__name__}) and no local copy of {hub_name}: {by_hand}"
            + ("; `backsight train` does without by --random-weights" if weights else "")
        ) from error


def _complete(folder: Path, weights: bool) -> Path:
    indices = [folder / name for name in INDICES if (folder / name).is_file()]
    whole = any((folder / name).is_file() for name in WEIGHTS)
    held = whole or any(all(shard.is_file() for shard in shards_of(index)) for index in indices)
    if not (folder / "config.json").is_file() or not (held or not weights):
        raise FileNotFoundError(folder)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a model's folder.

    Raises:
        UserError: there is none, or it is not JSON.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json: a model's folder holds config.json and model.safetensors")
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """What a file of a model's configuration says.

    Raises:
        UserError: it is not JSON, or something other than names and values.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): save the model again with save_pretrained") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a model's configuration: save the model again with save_pretrained")
    return config


def refused(folder: Path, library: str, error: Exception) -> UserError:
    """What a library says of the values in the ``config.json`` of ``folder``, each of its models in its own way."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return UserError(f"{folder / 'config.json'} is refused by {library} ({reason}): mend it there")


def weights_in(folder: Path) -> Path:
    """The file of weights in a model's ``folder``, or the index of several.

    Raises:
        UserError: there is none.
    """
    for name in (*WEIGHTS, *INDICES):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no weights: it should hold model.safetensors beside config.json")


def shards_of(index: Path) -> list[Path]:
    """The files that an ``.index.json`` names, all in its own folder.

    Raises:
        UserError: it is no such index, or names files elsewhere.
    """
    named = read_json(index).get("weight_map")
    files = sorted(set(named.values())) if isinstance(named, dict) else []
    if not files or not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise UserError(f"{index} names no files of weights beside it: save the model again with save_pretrained")
    return [index.parent / file for file in files]

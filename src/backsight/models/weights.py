"""Finding a model's files: the hub, a cache, a folder, a file of weights. Nothing here unpickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backsight.core import UserError
from backsight.io import read_tensors

CONFIGURATION: tuple[str, ...] = ("config.json", "preprocessor_config.json")
WEIGHTS: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")


def download(hub_name: str, *, weights: bool = True) -> Path:
    """The local folder of a model of the hub: from the cache if it is there, else fetched. Without its ``weights``, the
    configuration alone.

    Raises:
        UserError: it is not cached and cannot be fetched; the message says what to put where.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    files = [*CONFIGURATION, *(WEIGHTS if weights else ())]
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
            + ("; or add --random-weights to try without trained weights" if weights else "")
        ) from error


def _complete(folder: Path, weights: bool) -> Path:
    held = not weights or any((folder / name).is_file() for name in WEIGHTS)
    if not (folder / "config.json").is_file() or not held:
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


def weights_in(folder: Path) -> Path:
    """The file of weights in a model's ``folder``.

    Raises:
        UserError: there is none.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no weights: it should hold model.safetensors beside config.json")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a ``.pth``, ``.pt`` or ``.bin`` file read with ``weights_only``.

    A training checkpoint that holds its weights under ``model`` or ``state_dict`` is unwrapped.

    Raises:
        UserError: the file is missing, is no file of weights, or holds more than tensors.
    """
    state = read_content(path)
    for wrapper in ("model", "state_dict"):
        state = state.get(wrapper, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state_dict: give a .safetensors file or a file of named tensors")
    return state


def read_content(path: Path) -> Any:
    """All that a file of weights holds: tensors in dictionaries and lists, whatever their order. Runs no code of it.

    Raises:
        UserError: the file is missing, is no file of weights, or holds more than tensors.
    """
    import torch

    if not path.is_file():
        raise UserError(f"no file of weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":
            reason = "it holds more than tensors, and code from a file is never run"
        else:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UserError(
            f"{path} cannot be read as weights ({reason}): give a .safetensors file or a state_dict"
        ) from error


def fill(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Put the tensors of ``state``, which came from ``what``, into ``module``.

    Raises:
        UserError: they are of another model.
    """
    own = module.state_dict()
    if any(name in own and own[name].shape != value.shape for name, value in state.items()):
        raise mismatch(what, [], [])
    differing = module.load_state_dict(state, strict=False)
    if differing.missing_keys or differing.unexpected_keys:
        raise mismatch(what, differing.missing_keys, differing.unexpected_keys)


def mismatch(what: str, missing: list[str], unexpected: list[str]) -> UserError:
    """One line for weights that are not of this model, with the first names that differ."""
    parts = [f"{len(names)} tensors are {how} (first: {names[0]})" for how, names in
             (("missing", missing), ("not of this model", unexpected)) if names]  # fmt: skip
    return UserError(f"the weights in {what} are of another model: {', '.join(parts) or 'shapes differ'}")

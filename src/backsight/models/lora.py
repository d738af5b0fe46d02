"""A LoRA adapter, as peft saves it, merged into the model that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from backsight.core import UserError
from backsight.models.checkpoints import mismatch, read_state
from backsight.models.transformers import class_of, fill_class
from backsight.models.weights import read_config, read_json, weights_in
from backsight.validation import first_line

ADAPTER = "adapter_config.json"
"""What tells a folder with an adapter from one with a model."""


def base_of(folder: Path) -> str:
    """The name or folder of the model that the adapter in ``folder`` belongs to.

    Raises:
        UserError: it names none, or peft, which merges it, is not installed.
    """
    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{folder / ADAPTER} names no 'base_model_name_or_path': merge the adapter first")
    try:
        import peft  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"{folder} is an adapter (LoRA) of {base}: pip install peft, or merge it first "
            "(merge_and_unload(), then save_pretrained())"
        ) from error
    beside = folder / base
    return str(beside) if beside.is_dir() and not Path(base).is_dir() else base


def merged(folder: Path, base: Path) -> nn.Module:
    """The model in the folder ``base`` with the adapter in ``folder`` merged into its weights.

    A head that the adapter brings tells how many classes there are; the base need have none.

    Raises:
        UserError: the adapter is of another model.
    """
    from peft import PeftModel  # pyright: ignore[reportMissingImports]
    from transformers import CONFIG_MAPPING

    said, raw = read_json(folder / ADAPTER), read_config(base)
    adapter = next((folder / f"adapter_model{end}" for end in (".safetensors", ".bin") if
                    (folder / f"adapter_model{end}").is_file()), folder / "adapter_model.safetensors")  # fmt: skip
    brought = {name.removeprefix("base_model.model."): value for name, value in read_state(adapter).items()}
    config = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    classes = [len(value) for name, value in brought.items() if name.endswith("classifier.weight")]
    architectures = raw.get("architectures")
    if classes:
        config.num_labels = classes[0]
        architectures = [(said.get("auto_mapping") or {}).get("base_model_class") or "ForImageClassification"]
    kept = class_of(config, architectures)
    module, info = fill_class(*kept, read_state(weights_in(base)))
    missing = [name for name in (*info["missing_keys"], *(each[0] for each in info["mismatched_keys"]))
               if name not in brought]  # fmt: skip
    if missing:
        raise mismatch(str(base), sorted(missing), [])
    try:
        model: Any = PeftModel.from_pretrained(module, str(folder))
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"the adapter in {folder} does not fit {base} ({reason}): merge it first") from error
    return model.merge_and_unload().float()

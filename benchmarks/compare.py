"""Ratios against those that were measured before."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from backsight.core import UserError
from benchmarks.measure import Ratio
from benchmarks.settings import Settings

COMMITTED = Path(__file__).parent / "ratios.json"
"""The ratios that were measured last, on the machine that they name."""

TOLERATED = 0.1
"""How much worse a ratio may be, as a share, before it is called a regression."""


def machine(settings: Settings) -> dict[str, Any]:
    """What the figures depend on beside the code."""
    device = settings.device
    amx = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()}{'' if amx else ', no AMX'}"
    return {
        "name": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """The processor's name, as Linux has it, or at least its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def read_ratios(path: Path) -> dict[str, Any]:
    """What ``python -m benchmarks --json`` wrote.

    Raises:
        UserError: it is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert all({"name", "median", "better"} <= each.keys() for each in content["ratios"])
        return content
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; give one that python -m benchmarks --json wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f"{path} holds no ratios: give a file that python -m benchmarks --json wrote") from error


def regressions(ratios: Sequence[Ratio], before: Mapping[str, Any]) -> list[str]:
    """A line for every ratio that is worse than ``before`` by more than :data:`TOLERATED`."""
    known = {each["name"]: each for each in before["ratios"]}
    return [line for ratio in ratios if ratio.name in known if (line := _worse(ratio, known[ratio.name]["median"]))]


def _worse(ratio: Ratio, before: float) -> str:
    change = ratio.median / before if ratio.better == "higher" else before / max(ratio.median, 1e-12)
    if change >= 1 - TOLERATED:
        return ""
    low, high = ratio.spread
    doubt = "; the rounds of this run include the old value" if low <= before <= high else ""
    return f"{ratio.name}: {ratio.median:.3g} now, {before:.3g} before, {100 * (1 - change):.0f} % worse{doubt}"


def difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Why ratios of two machines cannot be set beside each other, in one line; empty where they can."""
    other = [f"{name} {there.get(name)}, not {here[name]}" for name in here if there.get(name) != here[name]]
    return f"the committed ratios are of another machine: {'; '.join(other)}" if other else ""

"""What ships with the package: small trained models and their chains, by names that begin with ``zoo/``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backsight.validation import UserError, nearest

ZOO = Path(__file__).parent / "zoo" / "weights"
"""One folder for each model: ``config.json``, weights, ``card.json``, and ``chains/<seed>`` where there are any."""


IN_REPOSITORY = (
    "deformable-detr-prior",
    "detr-blood",
    "detr-defining",
    "detr-independent",
    "vit-cifar10",
    "vit-defining",
    "vit-independent",
)
"""Those that a checkout of the repository has, and the wheel has not."""

FLOWS, SAMPLED = "flows", ("zoo/detr-prior", "zoo/detr-independent", "zoo/vit-prior")
"""The folder with the inverses that sample, ``zoo/NAME/flows``, and the models that have one in a checkout."""


def shipped_names(*, drawn: bool = False) -> list[str]:
    """``zoo/detr-prior`` and the others that are here; only those that were trained on ``drawn`` scenes, if asked."""
    names = [f"zoo/{path.parent.name}" for path in sorted(ZOO.glob("*/config.json"))]
    return [name for name in names if not drawn or shipped_card(name)["data"].startswith("world")]


def find_shipped(name: str) -> Path | None:
    """The folder of ``zoo/...``; None for any other name.

    Raises:
        UserError: the zoo has no such model; the nearest is offered.
    """
    if not name.startswith("zoo/"):
        return None
    if name not in (names := shipped_names()):
        if name.removeprefix("zoo/") in IN_REPOSITORY:
            raise UserError(f"{name} is not in the installed package, which has {', '.join(names)}: install a checkout")
        raise UserError(f"no model '{name}' in the zoo: {nearest(name, names)}")
    return ZOO / name.removeprefix("zoo/")


def shipped_card(name: str) -> dict[str, Any]:
    """What is known of ``zoo/...``: how it was trained, on what, its test figures; empty for any other name."""
    folder = find_shipped(name)
    return {} if folder is None else json.loads((folder / "card.json").read_text(encoding="utf-8"))

"""What there is: models, their stages, the zoo."""

from __future__ import annotations

import json
from typing import Any

from backsight.models import MODELS
from backsight.shipped import ZOO
from backsight.staging import StagedModel


def list_models() -> list[dict[str, Any]]:
    """Every family: its library, well-known names (any other name of the same kind works too), and its zoo models."""
    rows = [
        {"family": family.name, "library": family.library, "names": list(family.names)} for family in MODELS.values()
    ]
    return [
        *rows,
        {"family": "zoo", "library": "ships with backsight", "names": [f"zoo/{name}" for name in list_zoo()]},
    ]


def list_stages(model: StagedModel) -> list[dict[str, Any]]:
    """Every stage and layer of ``model``: where it is in the library's model, its static layout, its inverses."""
    rows = []
    for name in model.names:
        layout, stage = model.layout(name), model.stage_of(name)
        sites = model.sites(name)
        inverses = [f"{kind} ({variant})" if variant else kind for variant, (kind, _) in stage.inverses.items()]
        rows.append(
            {
                "stage": name,
                "site": " + ".join(f"{site.path or 'the model'} {site.side}" + _field(site.field) for site in sites),
                "tokens": layout.tokens,
                "width": layout.width,
                "grid": " + ".join(f"{h}x{w}" for h, w in layout.grids) or "-",
                "inverses": ", ".join(inverses) if name == stage.name else "",
            }
        )
    return rows


def _field(name: int | str | None) -> str:
    return "" if name is None else f" [{name}]"


def list_zoo() -> dict[str, dict[str, Any]]:
    """The cards of the models that ship with the package, with a ``summary`` of their figures."""
    cards = {}
    for path in sorted(ZOO.glob("*/card.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        figures = ", ".join(
            f"{name} {value:.3f}" for name, value in card["figures"].items() if isinstance(value, float)
        )
        cards[path.parent.name] = {**card, "summary": figures}
    return cards

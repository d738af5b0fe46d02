"""Train a model of the zoo, or its inverse chains, again from nothing: ``python -m recipes detr-prior``."""

from __future__ import annotations

from pathlib import Path

import tyro
from tyro.conf import Positional

from backsight.core import UserError
from recipes.chains import train_chains
from recipes.train import train_forward


def train(
    name: Positional[str],
    out: Path | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    chains: bool = False,
    data: str | None = None,
    device: str = "cpu",
) -> None:
    """Train a model of the zoo again from nothing, by its own recipe: the model, or its inverse chains.

    Args:
        name: One of `backsight zoo list`, as detr-prior.
        out: The folder for the weights and the card; runs/zoo/NAME if not given.
        steps: Batches, in place of the recipe's.
        minutes: Stop after this many minutes.
        seed: Of the model's first weights and of its scenes, in place of the recipe's.
        chains: Train the inverse chains of the model in that folder.
        data: Where the photographs are, as for `backsight train`, if not where the recipe says.
        device: Where to compute, as cuda.
    """
    out = out or Path("runs", "zoo", name)
    if chains:
        train_chains(name, out, steps=steps, minutes=minutes, data=data, device=device)
    else:
        train_forward(name, out, steps=steps, minutes=minutes, seed=seed, data=data, device=device)
    print(out / "card.json")


if __name__ == "__main__":
    UserError.in_command = True
    try:
        tyro.cli(train, prog="python -m recipes")
    except UserError as error:
        raise SystemExit(f"recipes: {error}") from error

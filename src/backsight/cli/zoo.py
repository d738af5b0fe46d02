"""The commands of the zoo."""

from __future__ import annotations

import logging
from pathlib import Path

from tyro.conf import Positional

from backsight.cli.app import print_table, save


def zoo_list(json: Path | None = None) -> None:
    """The small trained models that ship with the package, and their test figures.

    Args:
        json: Write their cards to a file.
    """
    from backsight.catalogue import list_zoo

    cards = list_zoo()
    print_table(["name", "figures"], [[name, card["summary"]] for name, card in cards.items()])
    save(json, cards)


def zoo_train(
    name: Positional[str],
    out: Path | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    chains: bool = False,
) -> None:
    """Train one of them again from nothing, by its own recipe: the model, or its inverse chains.

    Args:
        name: One of `backsight zoo list`, as detr-prior.
        out: The folder for the weights and the card; runs/zoo/NAME if not given.
        steps: Batches, in place of the recipe's.
        minutes: Stop after this many minutes.
        seed: Of the model's first weights and of its scenes, in place of the recipe's.
        chains: Train the inverse chains of the model in that folder.
    """
    from backsight.zoo.chains import train_chains
    from backsight.zoo.train import train_forward

    out, log = out or Path("runs", "zoo", name), logging.getLogger("backsight").info
    if chains:
        train_chains(name, out, steps=steps, log=log)
    else:
        train_forward(name, out, steps=steps, minutes=minutes, seed=seed, log=log)
    print(out / "card.json")

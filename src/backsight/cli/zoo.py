"""The command of the zoo."""

from __future__ import annotations

from pathlib import Path

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

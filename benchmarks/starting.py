"""How long a user waits before anything happens: processes from their start to their end."""

from __future__ import annotations

import subprocess
import sys
from statistics import median

from benchmarks.measure import Ratio, Side, quotients, seconds
from benchmarks.settings import SHIPPED, Settings

LOOK = """
import torch, backsight as bs
from backsight.data import open_data
model, chain = bs.load_model("{name}"), bs.InverseChain.from_pretrained("{name}")
with torch.no_grad():
    trace = model.run(open_data("{data}", model.pixels).test.batch(range(64)).images)
    assert all(len(chain.reconstruct(trace, stage)) == 64 for stage in chain.stages)
"""
"""From nothing to 64 reconstructed images: imports, model and chain, drawing of the scenes, every stage."""


def measure(settings: Settings) -> list[Ratio]:
    """Import and ``--help`` over a bare interpreter's start; a first look over an import of torch."""
    start = "interpreter"
    commands = {
        start: ["-c", "pass"],
        "import": ["-c", "import backsight"],
        "help": ["-m", "backsight", "--help"],
    }
    return [*_over(start, commands, settings), *measure_look(settings)]


def measure_look(settings: Settings) -> list[Ratio]:
    """From nothing to 64 images, reconstructed from every stage, by a shipped model."""
    commands = {"import torch": ["-c", "import torch"]}
    for name in settings.chosen(SHIPPED):
        law = name.rpartition("-")[2]
        data = f"world:{law}:single" if "vit" in name else f"world:{law}"
        commands[f"look {name}"] = ["-c", LOOK.format(name=name, data=data)]
    return _over("import torch", commands, settings)


def _over(base: str, commands: dict[str, list[str]], settings: Settings) -> list[Ratio]:
    sides: dict[str, Side] = {name: _process(arguments) for name, arguments in commands.items()}
    spent = seconds(sides, settings.rounds)
    return [
        Ratio(
            f"start/{side}",
            quotients(spent[side], spent[base]),
            f"seconds of a process, over those of one that does no more than: {base}",
            "lower",
            {"seconds": median(spent[side])},
        )
        for side in sides
        if side != base
    ]


def _process(arguments: list[str]) -> Side:
    return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL) and None

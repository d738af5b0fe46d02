"""How every forward model of the zoo is trained: numbers, no code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backsight.core import UserError
from backsight.data.scenes import LAWS, Law

Architecture = Literal["detr", "vit", "deformable-detr"]

SIZE = (96, 96)
"""(H, W) in pixels of every picture that the zoo's models see."""


@dataclass(frozen=True)
class Recipe:
    """The numbers of one training run.

    ``steps`` of ``batch_size`` scenes, none seen twice. The learning rate rises over ``warmup`` steps, stays at
    ``learning_rate`` until the part ``flat`` of the run, then falls to 0 as a cosine. Gradients are clipped to the norm
    ``clip``. ``seed`` is that of the weights and of the scenes.
    """

    architecture: Architecture
    law: Law
    steps: int
    learning_rate: float
    batch_size: int = 64
    weight_decay: float = 1e-4
    warmup: int = 300
    flat: float = 0.3
    clip: float = 0.5
    seed: int = 0

    @property
    def data(self) -> str:
        """The data as ``open_world`` reads it."""
        return f"world:{self.law}" + (":single" if self.architecture == "vit" else "")


RECIPES: dict[str, Recipe] = {
    **{f"detr-{law}": Recipe("detr", law, steps=3_500, learning_rate=6e-4) for law in LAWS},
    **{f"vit-{law}": Recipe("vit", law, steps=3_500, learning_rate=1e-3, weight_decay=0.05, clip=1.0) for law in LAWS},
    "deformable-detr-prior": Recipe("deformable-detr", "prior", steps=3_000, learning_rate=4e-4, batch_size=32),
}
"""The forward models of the zoo, by name."""


def zoo_names() -> list[str]:
    """The names of the forward models that ship with the package."""
    return list(RECIPES)


def find_recipe(name: str) -> Recipe:
    """The recipe called ``name``, with or without ``zoo/`` before it.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    recipe = RECIPES.get(name.removeprefix("zoo/"))
    if recipe is None:
        raise UserError(f"no model '{name}' in the zoo: it has {', '.join(RECIPES)}")
    return recipe

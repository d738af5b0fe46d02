"""How every forward model of the zoo is trained: numbers, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from backsight.core import UserError
from backsight.data.world.scenes import Law, class_names

Architecture = Literal["detr", "vit", "deformable-detr"]

SIZE = (96, 96)
"""(H, W) in pixels of every scene that the zoo's models see."""


@dataclass(frozen=True)
class Recipe:
    """The numbers of one training run.

    ``steps`` of ``batch_size`` scenes, none seen twice, or of the photographs of ``photos`` (data as for ``backsight
    train``), whose classes have ``names``, every time at another place, scale and brightness. The learning rate rises
    over ``warmup`` steps, stays at
    ``learning_rate`` until the part ``flat`` of the run, then falls to 0 as a cosine. Gradients are clipped to the norm
    ``clip``. ``seed`` is that of the weights and of the scenes. ``dense`` is the weight of a classifier's second loss,
    the class of every patch (Jiang et al. 2021, "All Tokens Matter"): a small vision transformer learns shapes from the
    class token alone too slowly, and colours at once. ``muon`` is the learning rate of Muon (Jordan et al. 2024) for
    the matrices in a classifier's blocks, the rest stays with AdamW: four times fewer steps than AdamW alone.
    ``mixed`` is the share of batches whose images have a rectangle of another (Yun et al. 2019, "CutMix"). ``start``
    is the model of the zoo whose weights it begins with, where they have the same shape. ``arguments`` replace some of
    the architecture's own.
    """

    architecture: Architecture
    law: Law | None
    steps: int
    learning_rate: float
    photos: str = ""
    names: tuple[str, ...] = ()
    size: tuple[int, int] = SIZE
    arguments: Mapping[str, Any] = field(default_factory=dict)
    start: str = ""
    mixed: float = 0.0
    batch_size: int = 64
    weight_decay: float = 1e-4
    warmup: int = 300
    flat: float = 0.3
    clip: float = 0.5
    dense: float = 0.0
    muon: float = 0.0
    seed: int = 0

    @property
    def data(self) -> str:
        """The data as ``open_data`` reads it."""
        return self.photos or f"world:{self.law}" + (":single" if self.architecture == "vit" else "")

    @property
    def classes(self) -> dict[int, str]:
        """The names of the classes by their numbers."""
        return class_names(self.law) if self.law else dict(enumerate(self.names))


_VIT: dict[str, Any] = {
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "warmup": 100,
    "clip": 1.0,
    "dense": 1.0,
    "muon": 2e-3,
}

RECIPES: dict[str, Recipe] = {
    "detr-prior": Recipe("detr", "prior", steps=3_500, learning_rate=6e-4),
    "detr-independent": Recipe("detr", "independent", steps=3_500, learning_rate=6e-4),
    "detr-defining": Recipe("detr", "defining", steps=2_500, learning_rate=6e-4),
    "vit-prior": Recipe("vit", "prior", steps=3_500, learning_rate=1e-3, weight_decay=0.05, clip=1.0),
    "vit-independent": Recipe("vit", "independent", steps=3_000, **_VIT),
    "vit-defining": Recipe("vit", "defining", steps=1_000, **_VIT),
    "deformable-detr-prior": Recipe("deformable-detr", "prior", steps=2_500, learning_rate=4e-4, batch_size=32),
    "vit-cifar10": Recipe(
        "vit",
        None,
        steps=5_500,
        photos="hf:uoft-cs/cifar10",
        names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        size=(32, 32),
        arguments={"img_size": 32, "patch_size": 4},
        batch_size=512,
        mixed=0.5,
        **{**_VIT, "dense": 0.0, "flat": 0.2},
    ),
    "detr-blood": Recipe(
        "detr",
        None,
        steps=1_600,
        learning_rate=6e-4,
        photos="voc:BCCD",
        names=("Platelets", "RBC", "WBC"),
        size=(192, 256),
        arguments={"num_queries": 40},
        start="detr-prior",
        batch_size=32,
    ),
}
"""The forward models of the zoo, by name."""


@dataclass(frozen=True)
class ChainRecipe:
    """How the inverse chains of a forward model are trained.

    ``seeds`` instances of every inverse, ``steps`` batches of ``batch_size`` scenes, with what of the paper's
    ``inverses`` is changed (see ``TrainOptions.inverse``). Of few photographs so many ``moved`` ones are made, as the
    forward model has seen them.
    """

    inverses: tuple[str, ...]
    seeds: int
    steps: int
    batch_size: int = 16
    moved: int = 0


_TO_DETR = (  # narrower than the paper's for such a model, so that all of the zoo stays small
    "backbone=deconvolution:expansion=1,head=4",
    "backbone@local=local:depth=1",
    "encoder=encoder:depth=2,feedforward=128",
    "decoder=decoder:depth=2,feedforward=128",
)
_TO_DEFORMABLE = (
    "backbone=pyramid:expansion=0.7",
    "backbone@local=local:depth=1",
    "encoder=deformable_encoder:depth=2,feedforward=128",
    "decoder=deformable_decoder:depth=1,feedforward=128",
)
_TO_CELLS = (
    "backbone=deconvolution:expansion=0.7,head=4",
    "backbone@local=local:depth=1",
    "encoder=blocks:depth=1,mlp_ratio=2,heads=8,start=ridge",
    "decoder=decoder:depth=1,feedforward=128",
)
_TO_VIT = ("backbone=patch:whole=true", "encoder=blocks:depth=3,mlp_ratio=2")

CHAINS: dict[str, ChainRecipe] = {
    "detr-prior": ChainRecipe(_TO_DETR, seeds=3, steps=1_500),
    "detr-independent": ChainRecipe(_TO_DETR, seeds=3, steps=1_500),
    "detr-defining": ChainRecipe(_TO_DETR, seeds=3, steps=1_500),
    "deformable-detr-prior": ChainRecipe(_TO_DEFORMABLE, seeds=3, steps=600),
    "vit-prior": ChainRecipe(_TO_VIT, seeds=3, steps=1_000),
    "vit-independent": ChainRecipe(_TO_VIT, seeds=3, steps=1_000),
    "vit-defining": ChainRecipe(_TO_VIT, seeds=3, steps=1_000),
    "vit-cifar10": ChainRecipe(
        ("backbone=patch:whole=true", "encoder=blocks:depth=1,mlp_ratio=2,heads=8,start=ridge"),
        seeds=3,
        steps=1_500,
        batch_size=64,
    ),
    "detr-blood": ChainRecipe(_TO_CELLS, seeds=3, steps=1_200, moved=3_000),
}
"""The shipped chains of every forward model, by its name."""


def find_recipe(name: str) -> Recipe:
    """The recipe called ``name``, with or without ``zoo/`` before it.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    recipe = RECIPES.get(name.removeprefix("zoo/"))
    if recipe is None:
        raise UserError(f"no model '{name}' in the zoo: it has {', '.join(RECIPES)}")
    return recipe

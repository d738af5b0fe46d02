"""The README's picture, from the shipped models: ``python -m recipes.pictures docs/images/glance.png``."""

from __future__ import annotations

import sys

import torch

from backsight.chain import ChainEnsemble
from backsight.data.world.render import render
from backsight.data.world.scenes import recolour, sample_scenes
from backsight.experiments.reconstruct import answers_of, caption
from backsight.figures import grid, to_png
from backsight.io import write_bytes
from backsight.models import load_model

MODELS = {"detector": "zoo/detr-prior", "classifier": "zoo/vit-prior"}
STAGES = ("backbone", "encoder", "decoder", "prediction")
SCENE, HUE = 18, 220.0
"""Which test scene, and the hue in degrees that its object gets."""


@torch.no_grad()
def glance() -> bytes:
    """One scene, as it is and with its object recoloured, through every stage of a detector and of a classifier."""
    scene = sample_scenes("prior", 2, [SCENE], single=True)  # of the test stream
    images = [render(each).images[0] / 255 for each in (scene, recolour(scene, 0, HUE))]
    rows, names, captions = [], [], []
    for kind, name in MODELS.items():
        model = load_model(name)
        chain = ChainEnsemble.from_pretrained(name).chains[0]
        for image, state in zip(images, ("as it is", "recoloured"), strict=True):
            trace = model.run(image[None])
            stages = [each for each in STAGES if each in chain.stages]
            pictures = [chain.reconstruct(trace, at=stage)[0] for stage in stages]
            rows.append([image, *pictures, *[None] * (len(STAGES) - len(stages))])
            names.append(f"{kind}, {state}")
            captions.append([caption(answers_of(model, trace)[0]), *[""] * len(STAGES)])
    return to_png(grid(rows, ["input", *STAGES], names, captions), 110)


if __name__ == "__main__":
    write_bytes(sys.argv[1], glance())

"""The documentation's pictures, from the shipped models: ``python -m recipes.pictures docs/images/glance.png``.

``docs/images/draws.jpg`` is the other one.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import torch
from PIL import Image

from backsight.chain import ChainEnsemble, InverseChain
from backsight.data import open_data
from backsight.data.world.render import render
from backsight.data.world.scenes import recolour, sample_scenes
from backsight.experiments.reconstruct import answers_of, caption, spread_map
from backsight.figures import grid, to_png
from backsight.io import write_bytes
from backsight.models import load_model
from backsight.shipped import shipped_card

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


DRAWN = (("zoo/detr-prior", "backbone"), ("zoo/detr-prior", "decoder"), ("zoo/vit-prior", "encoder"))
"""Of which models, from which stages, draws are shown."""


@torch.no_grad()
def draws() -> bytes:
    """A scene, the mean inverse, draws, their mean, and where they differ, for every one of :data:`DRAWN`."""
    rows, names = [], []
    for name, stage in DRAWN:
        model, flows = load_model(name), InverseChain.from_pretrained(f"{name}/flows")
        sample = open_data(shipped_card(name)["data"], model.pixels).test[7]
        assert sample is not None  # a scene can always be read
        image = sample.image[None] / 255
        trace = model.run(image)
        drawn = flows.sample(trace, stage, draws=16, seed=0)[:, 0]
        mean = flows.reconstruct(trace, stage)[0].clamp(0, 1)
        rows.append([image[0], mean, *drawn[:3], drawn.mean(0), spread_map(drawn)])
        names.append(f"{'DETR' if 'detr' in name else 'ViT'}, {stage}")
    columns = ["input", "mean inverse", "draw 1", "draw 2", "draw 3", "mean of 16", "they differ"]
    return to_png(grid(rows, columns, names, [[""] * len(columns) for _ in rows]), 110)


PICTURES = {"glance": glance, "draws": draws}

if __name__ == "__main__":
    path = Path(sys.argv[1])
    picture = PICTURES[path.stem]()
    if path.suffix == ".png":
        write_bytes(path, picture)
    else:
        Image.open(io.BytesIO(picture)).convert("RGB").save(path, quality=85)

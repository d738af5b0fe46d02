"""The drawn world as COCO files on the disk, for every tool that reads those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from backsight.data.base import Sample
from backsight.data.world import World
from backsight.io import write_text, write_whole


def export_coco(world: World, folder: str | Path, num: int, split: str = "val2017") -> Path:
    """Write the first ``num`` scenes as ``folder/SPLIT/*.png`` and ``folder/annotations/instances_SPLIT.json``.

    Masks are COCO's uncompressed run lengths, category ids are the labels plus one (COCO counts from 1), and every
    annotation carries its ``attributes`` besides. Gives the path of the JSON file, which is written last.
    """
    folder = Path(folder)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num):
        sample = world[index]
        picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        name = f"{index:012d}.png"
        write_whole(folder / split / name, lambda path, picture=picture: picture.save(path, format="png"))
        images.append({"id": index, "file_name": name, "height": world.size[0], "width": world.size[1]})
        annotations += _annotations(sample, index, first=len(annotations) + 1)
    categories = [{"id": key + 1, "name": name, "supercategory": "shape"} for key, name in world.classes.items()]
    info = {"description": f"{world.name}, seed {world.seed}", "fingerprint": world.fingerprint()}
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    return write_text(folder / "annotations" / f"instances_{split}.json", json.dumps(content, allow_nan=False))


def _annotations(sample: Sample, image: int, first: int) -> list[dict[str, Any]]:
    target = sample.target
    assert target.masks is not None
    found = []
    for k, (box, mask) in enumerate(zip(target.boxes.tolist(), target.masks, strict=True)):
        left, top, right, bottom = box
        found.append(
            {
                "id": first + k,
                "image_id": image,
                "category_id": int(target.labels[k]) + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
                "attributes": {name: values[k].item() for name, values in target.attributes.items()},
            }
        )
    return found


def run_lengths(mask: Tensor) -> list[int]:
    """A mask ``H W`` (bool) as COCO's run lengths: column by column, how many pixels are out, in, out, ..."""
    flat = mask.numpy().ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    lengths = np.diff(edges).tolist()
    return [0, *lengths] if flat[0] else lengths

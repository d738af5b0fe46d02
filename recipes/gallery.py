"""The figures of the gallery, from the folder of a reproduction: ``python -m recipes.gallery reproduction``."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

GALLERY = Path("docs/images/gallery")
WIDTH = 900
"""Of a figure's first page, in pixels."""


def shrink(reproduction: Path) -> None:
    """Write the first page of every experiment's figure, as ``docs/images/gallery/EXPERIMENT.webp``."""
    GALLERY.mkdir(parents=True, exist_ok=True)
    for page in sorted(reproduction.glob("*/figure.png")):
        with Image.open(page) as picture:
            height = round(picture.height * WIDTH / picture.width)
            small = picture.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
        small.save(GALLERY / f"{page.parent.name}.webp", quality=80, method=6)


if __name__ == "__main__":
    shrink(Path(sys.argv[1]))

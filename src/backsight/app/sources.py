"""Where a picture of a name comes from: a data set's test images, or what a visitor handed in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from torch import Tensor

from backsight.app.intake import PREFIX, Uploads, decode
from backsight.core import Pixels, UserError
from backsight.data import ImageData, Target, fit, open_data
from backsight.data.resize import valid_pixels


@dataclass(frozen=True)
class Source:
    """A picture as a model gets it: ``image`` ``3 H W`` in [0, 1], where it is ``valid`` (None: everywhere), and what
    is known of it (``target``, None for what a visitor handed in) with the names of its ``classes`` by label."""

    name: str
    image: Tensor
    valid: Tensor | None = None
    target: Target | None = None
    classes: dict[int, str] | None = None


class Pictures:
    """Every picture that has a name: ``world-prior/3`` is the fourth test image of a data set, ``upload-...`` a
    visitor's. Data sets have names of their own here, as a specification may tell of the machine's folders.

    Args:
        uploads: what visitors handed in.
        opener: opens a data set for a model, as :func:`~backsight.data.open_data` does.
    """

    def __init__(self, uploads: Uploads, opener: Callable[..., ImageData] | None = None) -> None:
        self.uploads = uploads
        self._open = opener or (lambda spec, pixels: open_data(spec, pixels, masks=True).test)
        self._specs: dict[str, str] = {}
        self._opened: dict[tuple[str, Pixels], ImageData] = {}
        self._lock = threading.RLock()

    def add(self, spec: str, pixels: Pixels, data: ImageData | None = None) -> str:
        """Offer the test images of ``spec``, opened already for ``pixels`` if ``data`` is given; returns their name."""
        with self._lock:
            known = {each: name for name, each in self._specs.items()}
            name = known.get(spec) or _free_name(spec, self._specs)
            self._specs[name] = spec
            if data is not None:
                self._opened[name, pixels] = data
        return name

    def data(self, name: str, pixels: Pixels) -> ImageData:
        """The data set called ``name`` for a model.

        Raises:
            UserError: there is none.
        """
        with self._lock:
            if name not in self._specs:
                raise UserError(f"no pictures of the name '{name[:40]}' are offered here: take one of the examples")
            if (name, pixels) not in self._opened:
                self._opened[name, pixels] = self._open(self._specs[name], pixels)
            return self._opened[name, pixels]

    def get(self, name: str, pixels: Pixels) -> Source:
        """The picture called ``name``, for a model.

        Raises:
            UserError: it is not there, or cannot be read.
        """
        if name.startswith(PREFIX):
            picture = decode(self.uploads.find(name).content)
            valid = valid_pixels((picture.shape[-2], picture.shape[-1]), pixels) if pixels.fit == "pad" else None
            return Source(name, fit(picture, pixels).float() / 255, valid)
        data_name, _, number = name.rpartition("/")
        data = self.data(data_name, pixels)
        index = int(number) if number.isdecimal() and len(number) < 12 else -1
        if not 0 <= index < len(data):
            raise UserError(f"'{data_name}' has the pictures 0 to {len(data) - 1}: '{number[:20]}' is none of them")
        sample = data[index]
        if sample is None:
            raise UserError(f"picture {index} of '{data_name}' cannot be read: take another")
        return Source(name, sample.image.float() / 255, sample.valid, sample.target, dict(data.classes))


def _free_name(spec: str, taken: dict[str, str]) -> str:
    """``coco:/data/photos:val2017`` -> ``coco-photos-val2017``: no folder above the last is told."""
    parts = [PurePath(part).name or part.strip("/") for part in spec.split(":")]
    name = base = "-".join(part for part in parts if part)
    number = 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name

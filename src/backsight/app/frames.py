"""A reconstruction as it is shown: a picture with its error, on one scale for everything on the page."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from backsight.app.eyes import Eyes, Seen
from backsight.app.markup import bar, picture, tag, text
from backsight.app.pictures import cut_padding, picture_uri, seeds_shown
from backsight.app.state import MEAN, SPREAD


@dataclass(frozen=True)
class Frame:
    """The ``image`` (``3 H W``) of a stage or layer, its ``address``, and its mean squared error: of the seed that is
    shown, or the mean over all. ``share`` is the error in units of that of the mean image, 1 at most."""

    name: str
    image: Tensor
    address: str
    error: float
    share: float

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.image.shape[-2], self.image.shape[-1]

    def cell(self, caption: str = "", describes: str = "") -> str:
        """The picture over its name and its error."""
        words = text("b", caption or self.name) if caption or self.name else ""
        return tag(
            "figure",
            picture(self.address, describes or f"Reconstruction from {self.name}", self.size),
            tag("figcaption", words, text("span", f"{self.error:.4f}", title="mean squared error")),
            bar(self.share),
        )


def frame(eyes: Eyes, seen: Seen, name: str, shows: str = MEAN, picture_of: Seen | None = None) -> Frame:
    """What a view shows of a stage or layer: ``shows`` is ``mean``, ``spread`` or a seed.

    The error is from the picture of ``seen``, or from that of ``picture_of``.

    Raises:
        UserError: no such seed or layer.
    """
    image = cut_padding(seeds_shown(eyes.reconstruct(seen, name), shows, eyes.seeds), seen)
    errors = eyes.errors(seen, name, picture_of)
    error = float(errors.mean() if shows in (MEAN, SPREAD) else errors[eyes.seeds.index(int(shows))])
    return Frame(name, image, picture_uri(image), error, min(1.0, error / max(eyes.baseline(seen), 1e-9)))


def frames(eyes: Eyes, seen: Seen, shows: str = MEAN) -> dict[str, Frame]:
    """:func:`frame` of every layer and stage, in the order of the forward pass."""
    return {name: frame(eyes, seen, name, shows) for name in eyes.layers}

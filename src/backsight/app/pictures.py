"""Tensors as pictures that a page can hold: no file is served, every picture is its own address."""

from __future__ import annotations

import base64
from io import BytesIO

from torch import Tensor

from backsight.app.eyes import Eyes, Seen
from backsight.app.state import MEAN, SPREAD
from backsight.core import Detections, UserError, valid_sizes
from backsight.data import read_image
from backsight.figures import colour_map, draw_detections, image_png, spread, to_array
from backsight.report.views import data_uri

SMALL = 200
"""Pictures with a side of fewer pixels are shown as squares and kept as PNG; larger ones are sent as WebP."""

LARGEST_SPREAD = 0.2
"""The standard deviation between seeds that has the brightest colour, on every map."""


def picture_uri(image: Tensor) -> str:
    """``3 H W`` in [0, 1] -> an address that is the picture itself."""
    if min(image.shape[-2:]) < 2 * SMALL:
        return data_uri(image_png(image), "image/png")
    return _webp(image)


def small_uri(image: Tensor) -> str:
    """The same in few bytes, for pictures that are many and small."""
    return _webp(image)


def read_uri(address: str) -> Tensor:
    """The picture ``3 H W`` of an address that :func:`picture_uri` or :func:`small_uri` made."""
    return read_image(base64.b64decode(address.partition(",")[2])).float() / 255


def _webp(image: Tensor) -> str:
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(to_array(image)).save(stream, format="WEBP", quality=90, method=2)
    return data_uri(stream.getvalue(), "image/webp")


def seeds_shown(found: Tensor, shows: str, seeds: list[int]) -> Tensor:
    """What a view shows of the reconstructions ``S 3 H W`` of ``seeds``: their mean, one of them, or their spread.

    Raises:
        UserError: there is no such seed, or too few for a spread.
    """
    if shows == MEAN:
        return found.mean(0)
    if shows == SPREAD:
        if len(found) < 2:
            raise UserError("one seed alone has no spread: train the chains with --seeds 3")
        return colour_map(spread(found), LARGEST_SPREAD)
    if not shows.isdecimal() or int(shows) not in seeds:
        raise UserError(f"no seed '{shows[:20]}': there are {', '.join(map(str, seeds))}, mean and spread")
    return found[seeds.index(int(shows))]


def cut_padding(image: Tensor, seen: Seen) -> Tensor:
    """``... H W``, or less of it: a padded picture alone."""
    if seen.trace.valid is None:
        return image
    rows, columns = valid_sizes(seen.trace.valid)[0]
    return image[..., :rows, :columns]


def answered(eyes: Eyes, seen: Seen, threshold: float = 0.5) -> Tensor:
    """The picture with the model's detections drawn on it, enlarged; as it is for models that detect nothing."""
    image, answer = cut_padding(seen.image.cpu(), seen), eyes.answer(seen)
    if not isinstance(answer, Detections):
        return image
    found = Detections(answer.boxes.cpu(), answer.scores.cpu(), answer.classes.cpu(), answer.labels)
    return draw_detections(image, found, threshold)

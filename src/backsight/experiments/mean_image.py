"""The mean image: what an inverse paints that knows nothing, whose error all others are held against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backsight.data import Batch, mean_of, sum_images
from backsight.io import read_tensor


@dataclass(frozen=True)
class MeanImage:
    """The mean of the training images, or, where nothing keeps that, of the very images that are looked at.

    ``image`` is ``3 H W`` in [0, 1]. ``counts`` says over how many of the images looked at it goes at each pixel,
    ``H W`` or one number; None: it is that of the training data.
    """

    image: Tensor
    counts: Tensor | int | None = None

    @classmethod
    def over(cls, batches: Iterable[Batch]) -> MeanImage:
        """That of the images that are looked at themselves; of padded ones only the pictures count."""
        sums, counts = zip(*(sum_images(batch.to("cpu")) for batch in batches), strict=True)
        # Where pictures of one batch are padded, those of another may not be.
        return cls(mean_of(torch.stack(sums).sum(0), sum(counts)).float(), sum(counts))

    def against(self, batch: Batch) -> Tensor:
        """What is held against the images of ``batch``, ``B 3 H W``: the mean image of the training data.

        The mean of n images is nearer to each of them than to any other image: its squared error is low by
        (n - 1) / n, and that of one image is 0. So it is moved away from each image, by the root of n / (n - 1): its
        squared error is then the variance without bias. It lies between the image and the mean of the
        others, whose own error would be as much too high. Where there is no other image it is their mean colour; NaN if
        there is none at all.
        """
        mean = self.image.to(batch.images.device).expand_as(batch.images)
        if self.counts is None:
            return mean
        counts = torch.as_tensor(self.counts, dtype=mean.dtype, device=mean.device)
        moved = batch.images + (counts / (counts - 1)).sqrt() * (mean - batch.images)
        alone = mean.mean((2, 3), keepdim=True) if counts.max() > 1 else mean.new_tensor(torch.nan)
        return torch.where(counts > 1, moved, alone)


def mean_image_of(run: str | Path) -> Tensor | None:
    """The mean of the training images that a run, or a shipped model, keeps, ``3 H W``; None where it does not."""
    path = Path(run) / "mean_image.safetensors"
    mend = "restore it, or remove it to measure against the mean of the images themselves"
    return read_tensor(path, "mean_image", mend).float() if path.is_file() else None

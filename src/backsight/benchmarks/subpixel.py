"""A transposed convolution of stride two written as four small convolutions: the same sums in another order.

Each of the four places of an output's 2 x 2 square is reached by its own part of the 3 x 3 kernel: one, two, two and
four weights. It is here to be measured; where it is quicker than a library's own transposed convolution it could
replace it, since it takes the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FROM_HERE, FROM_BOTH = [1], [2, 0]
"""Which rows (or columns) of the kernel reach an even place of the output, from one place of the input, and an odd one,
from that place and the next."""


def subpixel(maps: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``conv_transpose2d(maps, weight, bias, stride=2, padding=1, output_padding=1)`` of a 3 x 3 kernel.

    ``B D h w``, weights ``D D' 3 3`` -> ``B D' 2h 2w``.
    """
    kernel, wider = weight.transpose(0, 1), functional.pad(maps, (0, 1, 0, 1))
    height, width = maps.shape[-2:]
    parts = []
    for rows, below in ((FROM_HERE, 0), (FROM_BOTH, 1)):
        for columns, right in ((FROM_HERE, 0), (FROM_BOTH, 1)):
            window = wider[..., : height + below, : width + right]
            parts.append(functional.conv2d(window, kernel[:, :, rows][..., columns], bias))
    return functional.pixel_shuffle(torch.stack(parts, 2).flatten(1, 2), 2)

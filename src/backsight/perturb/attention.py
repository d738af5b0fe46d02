"""Who may attend to whom in a vision transformer (paper, sec. 4.4)."""

from __future__ import annotations

import torch
from torch import Tensor


def patch_attention_mask(num_tokens: int, prefix: int, *, reads_prefix: bool = False) -> Tensor:
    """Attention without patch-to-patch attention: ``N N``, bool, row = who attends, column = to whom, True = it may.

    A prefix token (the class token) attends to all tokens, a patch to itself and, if ``reads_prefix``, to the prefix
    tokens. No row is empty. Without ``reads_prefix``, as in the paper, each patch is processed alone; with it, patches
    still mix through the prefix from one layer to the next.

    Args:
        num_tokens: N, prefix tokens included.
        prefix: how many of them come before the patches.
        reads_prefix: patches attend to the prefix tokens too.

    Raises:
        ValueError: more prefix tokens than tokens.
    """
    if not 0 <= prefix <= num_tokens:
        raise ValueError(f"{prefix} prefix tokens among {num_tokens} tokens: at most all of them can be")
    allowed = torch.eye(num_tokens, dtype=torch.bool)
    allowed[:prefix] = True
    if reads_prefix:
        allowed[:, :prefix] = True
    return allowed

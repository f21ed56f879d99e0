"""Locally typical sampling: it keeps the tokens whose information is closest to the distribution's entropy.

Reference: Meister et al., https://arxiv.org/abs/2202.00666; transformers, `TypicalLogitsWarper`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shared.protocol import SamplingParams


def keep_typical(probs: Tensor, params: list[SamplingParams]) -> Tensor:
    """Return the probabilities with zeros for the tokens that `typical_p` leaves out.

    Each row is computed alone, so that it does not depend on its neighbours.

    Args:
        probs: [R, vocab] float32; the kept ones of a row need not add up to 1.
    """
    return torch.stack(
        [
            row if each.typical_p >= 1.0 else _typical(row, each.typical_p)
            for row, each in zip(probs, params, strict=True)
        ]
    )


def _typical(probs: Tensor, mass: float) -> Tensor:
    """Keep the most typical tokens up to this share of the row's mass, and all as typical as the last one kept."""
    kept = probs.nonzero()[:, 0]
    share = probs[kept].double()
    share /= share.sum()
    information = -share.log()
    distance = (information - (share * information).sum()).abs()
    ordered, order = distance.sort()
    last = min(int((share[order].cumsum(-1) < mass).sum()), len(ordered) - 1)
    left_out = kept[distance > ordered[last]]
    return probs.index_fill(0, left_out, 0)

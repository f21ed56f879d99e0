"""Concatenation of the weights of layers that are computed together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def join(weights: Sequence[Tensor]) -> Tensor:
    """Concatenate weights [out, in] along their outputs."""
    first = weights[0]
    if first.is_meta:  # torch.cat would import torch's compiler, which takes a second and 150 MB
        return first.new_empty(sum(map(len, weights)), *first.shape[1:])
    return torch.cat(tuple(weights)) if len(weights) > 1 else first

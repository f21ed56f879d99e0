"""Joining the arrays of requests for one execution, and dividing its outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from workers.predictors.interface import Array, Arrays
from workers.predictors.tensors.outputs import ModelFault


def join(parts: Sequence[Arrays]) -> Mapping[str, Array]:
    """Join the inputs of requests along the first dimension."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def divide(outputs: Arrays, names: Collection[str], sizes: Sequence[int]) -> list[dict[str, Array]]:
    """Divide the named outputs of an execution among requests with the given batch sizes. Raises ModelFault."""
    total = sum(sizes)
    divided: list[dict[str, Array]] = [{} for _ in sizes]
    for name in names:
        if name not in outputs:
            continue
        array = np.asarray(outputs[name])
        if array.shape[:1] != (total,):
            raise ModelFault(f"the model returned {name} with the shape {[*array.shape]} for a batch of {total}")
        start = 0
        for part, size in zip(divided, sizes, strict=True):
            part[name] = array[start : start + size]
            start += size
    return divided

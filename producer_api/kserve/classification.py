"""Triton's classification extension: the most likely classes of an output, as texts."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod

from producer_api.kserve.tensor_data import CODES, pack_items
from shared.errors import InvalidRequest
from shared.protocol import Tensor

MAX_ITEMS = 1_000_000  # of an output


def classify(tensor: Tensor, classes: int, *, batched: bool, labels: Sequence[str]) -> Tensor:
    """Return the texts `value:index` or `value:index:label` of the largest values of each row.

    Args:
        batched: the first dimension counts rows; otherwise the whole tensor is one.

    Raises InvalidRequest.
    """
    code = CODES.get(tensor.datatype)
    if code is None or tensor.datatype == "BOOL" or tensor.size > MAX_ITEMS:
        raise InvalidRequest(
            f"output {tensor.name} of {tensor.datatype} cannot be classified: it must have numbers, at most "
            f"{MAX_ITEMS}",
            param=tensor.name,
        )
    values = struct.unpack(f"<{tensor.size}{code}", tensor.data)
    rows = tensor.shape[:1] if batched else ()
    width = prod(tensor.shape[len(rows) :])
    count = min(classes, width)
    texts = []
    for begin in range(0, len(values), width or 1):
        row = values[begin : begin + width]
        best = sorted(range(width), key=row.__getitem__, reverse=True)[:count]
        texts += [_text(row[i], i, labels) for i in best]
    return Tensor(tensor.name, "BYTES", (*rows, count), pack_items(texts))


def _text(value: float, index: int, labels: Sequence[str]) -> bytes:
    shown = f"{value:f}" if isinstance(value, float) else str(value)
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{shown}:{index}{label}".encode()

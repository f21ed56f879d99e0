"""Comparison of two results: tensors or vectors, number by number, in plain Python."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from shared.protocol import ITEM_BYTES, Result, Tensor
from shared.repository.traffic.pairs import Agreement

MAX_ITEMS = 65_536  # of a tensor that are compared as numbers, so that a comparison takes milliseconds
_FORMATS = {
    **{"UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i"},
    **{"INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d", "BOOL": "?"},
}
_FLOATS = ("FP16", "BF16", "FP32", "FP64")
Numbers = Sequence[float]


def agreement_of(first: Result, second: Result) -> Agreement:
    """Return the agreement of two results of the same work."""
    if first.tensors or second.tensors:
        return _of_tensors(first.tensors, second.tensors)
    if first.vectors or second.vectors:
        return _of_tensors(_numbered(first.vectors), _numbered(second.vectors))
    return Agreement((first.tokens, first.pieces, first.text) == (second.tokens, second.pieces, second.text))


def _of_tensors(first: Sequence[Tensor], second: Sequence[Tensor]) -> Agreement:
    """Return the agreement of the outputs with the same names; others are no agreement."""
    others = {tensor.name: tensor for tensor in second}
    common = [_of_tensor(tensor, others[tensor.name]) for tensor in first if tensor.name in others]
    found = _joined(common)
    same_names = {tensor.name for tensor in first} == set(others)
    return found if same_names else Agreement(False, found.max_difference, found.labels_agree)


def _joined(found: Sequence[Agreement]) -> Agreement:
    """Return the agreement of a whole from those of its parts."""
    differences = [each.max_difference for each in found if each.max_difference is not None]
    labels = [each.labels_agree for each in found if each.labels_agree is not None]
    return Agreement(
        bool(found) and all(each.exact for each in found),
        max(differences, default=None),
        all(labels) if labels else None,
    )


def _of_tensor(first: Tensor, second: Tensor) -> Agreement:
    exact = (first.datatype, first.shape, first.data) == (second.datatype, second.shape, second.data)
    if first.shape != second.shape or "BYTES" in (first.datatype, second.datatype):
        return Agreement(exact)
    numbers, others = _numbers(first), _numbers(second)
    pairs = zip(numbers, others, strict=True)
    difference = max((0.0 if a == b else abs(a - b) for a, b in pairs), default=0.0)
    return Agreement(
        exact, difference if math.isfinite(difference) else None, _labels_agree(first, numbers, others)
    )


def _numbers(tensor: Tensor) -> Numbers:
    """Return at most the first MAX_ITEMS numbers of a tensor."""
    count = min(tensor.size, MAX_ITEMS)
    data = tensor.data[: count * ITEM_BYTES[tensor.datatype]]
    if tensor.datatype == "BF16":  # the upper half of a float32
        data = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
        return struct.unpack(f"<{count}f", data)
    return struct.unpack(f"<{count}{_FORMATS[tensor.datatype]}", data)


def _labels_agree(tensor: Tensor, numbers: Numbers, others: Numbers) -> bool | None:
    """Compare the place of the largest number in each row; None for outputs that are not scores of classes."""
    classes = tensor.shape[-1] if tensor.shape else 0
    if tensor.datatype not in _FLOATS or not 1 < classes <= len(numbers):
        return None
    rows = range(0, len(numbers) - classes + 1, classes)
    return all(_largest(numbers[i : i + classes]) == _largest(others[i : i + classes]) for i in rows)


def _largest(row: Numbers) -> int:
    return max(range(len(row)), key=row.__getitem__)


def _numbered(vectors: Sequence[bytes]) -> list[Tensor]:
    return [Tensor(str(i), "FP32", (len(data) // 4,), data) for i, data in enumerate(vectors)]

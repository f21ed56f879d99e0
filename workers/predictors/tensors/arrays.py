"""Conversion between tensors in the binary form of the Open Inference Protocol and numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.protocol import DataType, Tensor
from workers.predictors.interface import NUMPY_TYPES, Array

LENGTH_BYTES = 4  # before each item of BYTES


def to_array(tensor: Tensor) -> Array:
    """Return a tensor as an array of its shape. It is read-only where it shares the tensor's memory."""
    return read_items(tensor.datatype, tensor.data).reshape(tensor.shape)


def read_items(datatype: DataType, data: bytes) -> Array:
    """Return the items of binary data as an array of one dimension. Raises ValueError for incomplete items."""
    if datatype == "BYTES":
        return _read_bytes(data)
    if datatype == "BF16":
        bits = np.frombuffer(data, "<u2").astype("<u4") << 16
        found: Array = bits.view(NUMPY_TYPES[datatype])
        return found
    if datatype == "BOOL":
        truths: Array = np.frombuffer(data, np.uint8) != 0
        return truths
    return np.frombuffer(data, NUMPY_TYPES[datatype])


def to_tensor(name: str, datatype: DataType, array: Array) -> Tensor:
    """Return an array as a tensor. Raises TypeError if its items are not of the data type."""
    if datatype == "BYTES":
        data = _write_bytes(array.ravel())
    else:
        expected = NUMPY_TYPES[datatype]
        if array.dtype != expected and array.dtype != expected.newbyteorder():
            raise TypeError(f"{name} must have items of type {expected}, not {array.dtype}")
        data = _round_to_bf16(array) if datatype == "BF16" else array.astype(expected, copy=False).tobytes()
    return Tensor(name, datatype, array.shape, data)


def zeros(datatype: DataType, shape: Sequence[int]) -> Array:
    """Return an array of zeros; those of BYTES are empty."""
    if datatype == "BYTES":
        return np.full(tuple(shape), b"", dtype=object)
    return np.zeros(tuple(shape), NUMPY_TYPES[datatype])


def _read_bytes(data: bytes) -> Array:
    items: list[bytes] = []
    position = 0
    while position < len(data):
        start = position + LENGTH_BYTES
        position = start + int.from_bytes(data[position:start], "little")
        items.append(data[start:position])
    if position != len(data):
        raise ValueError("the last item of BYTES is incomplete")
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found


def _write_bytes(items: Array) -> bytes:
    parts: list[bytes] = []
    for item in items.tolist():  # items of a type of fixed width lose their padding here
        if not isinstance(item, str | bytes):
            raise TypeError(f"an item of BYTES must be bytes or a text, not {type(item).__name__}")
        encoded = item.encode() if isinstance(item, str) else item
        parts += (len(encoded).to_bytes(LENGTH_BYTES, "little"), encoded)
    return b"".join(parts)


def _round_to_bf16(array: Array) -> bytes:
    """Round float32 to the nearest bfloat16, and ties to an even one."""
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    kept_nan = (bits >> 16) | 0x40  # rounding could make an infinity of it
    return np.where(np.isnan(array), kept_nan, rounded).astype("<u2").tobytes()

"""Data of tensors: as JSON, and as the bytes that the protocol's binary form has."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from math import isfinite
from typing import Any

import msgspec

from shared.errors import InvalidRequest
from shared.protocol import DataType, Tensor

CODES: dict[DataType, str] = {  # of the module struct
    **{"BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q"},
    **{"INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP32": "f", "FP64": "d"},
}
BINARY_ONLY = ("FP16", "BF16")  # Triton has no JSON for them
LENGTH = struct.Struct("<I")  # before each item of BYTES


def from_json(name: str, datatype: DataType, shape: Sequence[int], data: list[Any]) -> Tensor:
    """Return the tensor of nested or flat JSON data, in row-major order. Raises InvalidRequest.

    Whether the number of items fits the shape is not checked here.
    """
    if datatype in BINARY_ONLY:
        raise InvalidRequest(f"input {name} of {datatype} must be sent as binary data", param=name)
    return Tensor(name, datatype, tuple(shape), _packed(name, datatype, _flat(name, data)))


def to_json(tensor: Tensor) -> Sequence[Any] | msgspec.Raw:
    """Return the data of a tensor as flat JSON data, in row-major order. Raises InvalidRequest."""
    if tensor.datatype in BINARY_ONLY:
        raise binary_only(tensor.name, tensor.datatype)
    if tensor.datatype == "BYTES":
        try:
            return [item.decode() for item in items_of(tensor.data)]
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"output {tensor.name} is not UTF-8 and must be requested as binary data"
            ) from None
    values = struct.unpack(f"<{tensor.size}{CODES[tensor.datatype]}", tensor.data)
    if tensor.datatype in ("FP32", "FP64") and not all(map(isfinite, values)):
        return msgspec.Raw(json.dumps(values).encode())  # with NaN and Infinity, as Triton writes them
    return values


def binary_only(output: str, datatype: DataType) -> InvalidRequest:
    """Return the error for an output that JSON cannot have."""
    return InvalidRequest(f"output {output} of {datatype} must be requested as binary data", param=output)


def pack_items(items: Iterable[bytes]) -> bytes:
    """Return items of BYTES, each after its length."""
    pack = LENGTH.pack
    return b"".join(part for item in items for part in (pack(len(item)), item))


def items_of(data: bytes) -> list[bytes]:
    """Return the items of a valid tensor of BYTES."""
    found, position = [], 0
    while position < len(data):
        begin = position + LENGTH.size
        position = begin + LENGTH.unpack_from(data, position)[0]
        found.append(data[begin:position])
    return found


def _flat(name: str, data: list[Any]) -> list[Any]:
    while list in (kinds := set(map(type, data))):
        if len(kinds) > 1:
            raise InvalidRequest(f"the data of input {name} must be flat, or nested to one depth", param=name)
        data = list(chain.from_iterable(data))
    return data


def _packed(name: str, datatype: DataType, items: list[Any]) -> bytes:
    kinds = set(map(type, items))
    allowed, described = _kinds(datatype)
    if not kinds <= allowed:
        raise InvalidRequest(f"the data of input {name} must be {described} for {datatype}", param=name)
    if datatype == "BYTES":
        return pack_items([item.encode() for item in items])
    try:
        return struct.pack(f"<{len(items)}{CODES[datatype]}", *items)
    except (struct.error, OverflowError):
        raise InvalidRequest(f"the data of input {name} are out of the range of {datatype}", param=name) from None


def _kinds(datatype: DataType) -> tuple[set[type], str]:
    """Return the types of JSON values that a datatype takes, and their description."""
    match datatype:
        case "BYTES":
            return {str}, "strings"
        case "BOOL":
            return {bool}, "true or false"
        case "FP32" | "FP64":
            return {int, float}, "numbers"
        case _:
            return {int}, "integers"

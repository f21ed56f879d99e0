"""Header of a safetensors file: names, types and shapes of its tensors, read without reading a tensor.

The format: https://huggingface.co/docs/safetensors#format
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from shared.errors import ConfigError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 2**25  # the largest known one, of a mixture of experts with 100,000 tensors, has 15 MB
DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "BF16": 16,
    "F16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
    "I8": 8,
    "I16": 16,
    "I32": 32,
    "I64": 64,
    "U8": 8,
    "U16": 16,
    "U32": 32,
    "U64": 64,
}


class StoredTensor(NamedTuple):
    """Type, under safetensors' name, and shape of a tensor in a file."""

    dtype: str
    shape: tuple[int, ...]


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file. Raises ConfigError, with the file and the reason, for one that is not whole."""
    try:
        with path.open("rb") as file:
            entries, begin = _read_entries(file, path)
            size = file.seek(0, 2)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", param="model") from error
    for name, entry in entries.items():
        _check(path, name, entry)
    end = begin + max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if size < end:
        raise ConfigError(
            f"{path} is truncated: it has {size} bytes, and its header describes {end}; download it again",
            param="model",
        )
    return {name: StoredTensor(entry.dtype, entry.shape) for name, entry in entries.items()}


def _read_entries(file: BinaryIO, path: Path) -> tuple[dict[str, _Entry], int]:
    """Return the entries of the header, and the position at which the data begin."""
    prefix = file.read(LENGTH_BYTES)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < LENGTH_BYTES:
        raise ConfigError(f"{path} is truncated: it has {len(prefix)} bytes", param="model")
    if length > MAX_HEADER_BYTES:
        raise ConfigError(
            f"{path} is not a safetensors file, or is damaged: the length of its header is {length} bytes; "
            f"at most {MAX_HEADER_BYTES} are allowed",
            param="model",
        )
    header = file.read(length)
    if len(header) < length:
        raise ConfigError(f"{path} is truncated within its header; download it again", param="model")
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        return {name: msgspec.json.decode(each, type=_Entry) for name, each in raw.items()}, LENGTH_BYTES + length
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} has a malformed header: {error}", param="model") from error


def _check(path: Path, name: str, entry: _Entry) -> None:
    begin, end = entry.data_offsets
    bits = DTYPE_BITS.get(entry.dtype)
    if bits is None:
        raise ConfigError(f"{path}: tensor {name} has the unknown type {entry.dtype}", param="model")
    if min(entry.shape, default=1) < 0 or begin < 0 or (end - begin) * 8 != math.prod(entry.shape) * bits:
        raise ConfigError(
            f"{path}: tensor {name} has {end - begin} bytes, which do not hold {entry.dtype} of the shape "
            f"{list(entry.shape)}",
            param="model",
        )

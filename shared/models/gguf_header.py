"""Header of a GGUF file: its metadata and where its tensors are, read without reading a tensor.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shared.errors import ConfigError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 has not been written since August 2023
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 2**16
MAX_ENTRIES = 2**17  # of metadata, and of tensors
MAX_DIMENSIONS = 4
MAX_STRING_BYTES = 2**24
MAX_HEADER_BYTES = 2**26  # the vocabulary of Gemma 4 takes 16 MB
MAX_ARRAY = 2**22  # values of an array
STRING, ARRAY = 8, 9
SCALARS = dict(
    enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?", None, None, "<Q", "<q", "<d"))
)  # by the type of a value


class BlockType(NamedTuple):
    """Type of a tensor: it is stored in blocks of `values` in `size` bytes, along its last dimension.

    `halves`: the first bytes of a block's scales, which are float16.
    """

    name: str
    values: int
    size: int
    halves: tuple[int, ...] = ()


BLOCK_TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18, (0,)),
    3: BlockType("Q4_1", 32, 20, (0, 2)),
    6: BlockType("Q5_0", 32, 22, (0,)),
    7: BlockType("Q5_1", 32, 24, (0, 2)),
    8: BlockType("Q8_0", 32, 34, (0,)),
    10: BlockType("Q2_K", 256, 84, (80, 82)),
    11: BlockType("Q3_K", 256, 110, (108,)),
    12: BlockType("Q4_K", 256, 144, (0, 2)),
    13: BlockType("Q5_K", 256, 176, (0, 2)),
    14: BlockType("Q6_K", 256, 210, (208,)),
    20: BlockType("IQ4_NL", 32, 18, (0,)),
    23: BlockType("IQ4_XS", 256, 136, (0,)),
    30: BlockType("BF16", 1, 2),
}


class GgufTensor(NamedTuple):
    """A tensor in a file: number of its type, its shape in torch's order, and its first and end byte."""

    type: int
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and tensors by their names. Arrays of strings that were not asked for are None."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf_header(path: Path, string_arrays: Container[str] = ()) -> GgufHeader:
    """Read the header of a file, with the arrays of strings of those keys.

    Raises ConfigError, with the file and the reason, for a file that is not whole or has tensors of an unsupported
    type.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data, string_arrays).read()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", param="model") from error
    except ValueError as error:  # of mmap
        raise ConfigError(f"{path} is truncated: it has 0 bytes", param="model") from error


class _Reader:
    """Cursor over a file; each read is checked against the file's end."""

    def __init__(self, path: Path, data: mmap.mmap, string_arrays: Container[str]) -> None:
        self._path = path
        self._data = data
        self._string_arrays = string_arrays
        self._at = 0

    def read(self) -> GgufHeader:
        magic = bytes(self._data[: len(MAGIC)])
        if magic != MAGIC:
            raise self._error("is not a GGUF file: it does not begin with GGUF")
        self._at = len(MAGIC)
        version = self._number("<I")
        if version not in VERSIONS:
            raise self._error(f"has version {version} of GGUF; supported: {', '.join(map(str, VERSIONS))}")
        tensor_count, metadata_count = self._number("<Q"), self._number("<Q")
        if max(tensor_count, metadata_count) > MAX_ENTRIES:
            raise self._error(f"is damaged: it claims {tensor_count} tensors and {metadata_count} metadata values")
        metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = self._string()
            metadata[key] = self._value(self._number("<I"), key)
        found = [self._tensor() for _ in range(tensor_count)]
        return GgufHeader(metadata, self._place(found, self._alignment(metadata)))

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Return name, type, shape and offset of the next tensor."""
        name, dimensions = self._string(), self._number("<I")
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise self._error(f"is damaged: tensor {name} has {dimensions} dimensions")
        shape = tuple(reversed([self._number("<Q") for _ in range(dimensions)]))
        return name, self._number("<I"), shape, self._number("<Q")

    def _place(self, found: list[tuple[str, int, tuple[int, ...], int]], alignment: int) -> dict[str, GgufTensor]:
        """Return where each tensor is, after checks against its type and the end of the file."""
        begin = math.ceil(self._at / alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in found:
            block = BLOCK_TYPES.get(kind)
            if block is None:
                known = ", ".join(each.name for each in BLOCK_TYPES.values())
                raise self._error(f"has tensor {name} in ggml's type {kind}; supported: {known}")
            if name in tensors:
                raise self._error(f"is damaged: it has tensor {name} twice")
            if shape[-1] % block.values or min(shape) < 1:
                raise self._error(f"is damaged: {block.name} cannot hold tensor {name} of the shape {list(shape)}")
            end = begin + offset + math.prod(shape) // block.values * block.size
            if end > len(self._data):
                raise self._error(
                    f"is truncated: it has {len(self._data)} bytes, and tensor {name} ends at {end}; "
                    "download it again"
                )
            tensors[name] = GgufTensor(kind, shape, begin + offset, end)
        return tensors

    def _alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._error(f"is damaged: general.alignment is {alignment!r}")
        return alignment

    def _value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._number(self._scalar(kind, key))
        kind, count = self._number("<I"), self._number("<Q")
        if count > MAX_ARRAY:
            raise self._error(f"is damaged: {key} has {count} values")
        if kind == STRING:
            if key in self._string_arrays:
                return [self._string() for _ in range(count)]
            for _ in range(count):
                self._skip(self._number("<Q"))
            return None
        form = self._scalar(kind, key)
        self._expect(struct.calcsize(form) * count)
        values = list(struct.unpack_from(f"<{count}{form[1]}", self._data, self._at))
        self._skip(struct.calcsize(form) * count)
        return values

    def _scalar(self, kind: int, key: str) -> str:
        form = SCALARS.get(kind)
        if form is None:
            raise self._error(f"is damaged: {key} has a value of type {kind}")
        return form

    def _number(self, form: str) -> Any:
        size = struct.calcsize(form)
        self._expect(size)
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += size
        return value

    def _string(self) -> str:
        size = self._number("<Q")
        if size > MAX_STRING_BYTES:
            raise self._error(f"is damaged: it has a text of {size} bytes")
        begin = self._at
        self._skip(size)
        return bytes(self._data[begin : self._at]).decode(errors="replace")

    def _skip(self, size: int) -> None:
        self._expect(size)
        self._at += size

    def _expect(self, size: int) -> None:
        if size > len(self._data) - self._at:
            raise self._error("is truncated within its header; download it again")
        if self._at + size > MAX_HEADER_BYTES:
            raise self._error(f"is damaged: its header has more than {MAX_HEADER_BYTES} bytes")

    def _error(self, reason: str) -> ConfigError:
        return ConfigError(f"{self._path} {reason}", param="model")

"""Form of a block in a store: a fixed header, a checksum, and the bytes of its keys and values."""

from __future__ import annotations

import struct

import numpy as np
import torch
import xxhash

from workers.engine.tiers.store import Value

MAGIC, VERSION = b"HRKV", 3
HEADER = struct.Struct("<4sHH5IQ")  # magic, version, dtype, shape, bytes of the content
CHECKSUM_BYTES = 16
CONTENT_AT = HEADER.size + CHECKSUM_BYTES
DTYPES = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}

Shape = tuple[int, int, int, int, int]


class BlockCodec:
    """Codec of blocks of one shape.

    The checksum covers the key too: a value under another key is not valid. It is no signature: with access to the
    store, it can be computed. XXH3 takes a fourteenth of the time of zlib's CRC-32.

    Args:
        shape: layers, keys and values, heads, slots, dim.

    Attributes:
        value_bytes: size of an encoded block.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        self.content_bytes = int(np.prod(shape)) * dtype.itemsize
        self.value_bytes = CONTENT_AT + self.content_bytes
        self._header = HEADER.pack(MAGIC, VERSION, DTYPES[dtype], *shape, self.content_bytes)

    def frame(self) -> np.ndarray:
        """Return the memory of a value; its content is written from CONTENT_AT on."""
        return np.empty(self.value_bytes, np.uint8)

    def seal(self, key: bytes, frame: np.ndarray) -> memoryview:
        """Complete a value whose content was written."""
        value = frame.data.cast("B")
        value[: HEADER.size] = self._header
        value[HEADER.size : CONTENT_AT] = self._checksum(key, value[CONTENT_AT:])
        return value.toreadonly()

    def open(self, key: bytes, value: Value) -> memoryview | None:
        """Return the content of a value, None for anything else than a whole value of this key and shape."""
        if len(value) != self.value_bytes or value[: HEADER.size] != self._header:
            return None
        content = memoryview(value)[CONTENT_AT:]
        return content if value[HEADER.size : CONTENT_AT] == self._checksum(key, content) else None

    def _checksum(self, key: bytes, content: memoryview) -> bytes:
        return xxhash.xxh3_128_digest(content, xxhash.xxh3_64_intdigest(key + self._header))

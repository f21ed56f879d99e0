"""Fields that choose the form of vectors in a response, as vLLM has them."""

from __future__ import annotations

import struct
import sys
from array import array
from base64 import b64encode
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from shared.protocol import VectorType
from shared.schemas.base import Body

ARRAY_CODES: Mapping[VectorType, str] = {"float32": "I", "float16": "H", "bfloat16": "H"}  # of more than one byte


class VectorFields(Body):
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64 encodes the bytes of the numbers; default float"
    )
    embed_dtype: VectorType | None = Field(None, description="type of the numbers in base64; default float32")
    endianness: Literal["native", "big", "little"] | None = Field(
        None, description="byte order of the numbers in base64; default native, the server's, which is little"
    )

    @property
    def vector_type(self) -> VectorType:
        """The type of the numbers that the worker returns. JSON numbers are made of float32."""
        return self.embed_dtype or "float32" if self.encoding_format == "base64" else "float32"

    def shown(self, vector: bytes) -> list[float] | str:
        """Return little-endian numbers in the form that the body asks for."""
        if self.encoding_format != "base64":
            return numbers(vector)
        code = ARRAY_CODES.get(self.vector_type)
        if code is not None and self._byte_order != "little":
            swapped = array(code, vector)
            swapped.byteswap()
            vector = swapped.tobytes()
        return b64encode(vector).decode()

    @property
    def _byte_order(self) -> str:
        return sys.byteorder if self.endianness in (None, "native") else str(self.endianness)


def numbers(vector: bytes) -> list[float]:
    """Return the numbers of little-endian float32."""
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))

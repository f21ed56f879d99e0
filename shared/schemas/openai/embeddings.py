"""OpenAI's embeddings, as we accept and return them.

Reference: OpenAI API, "Create embeddings".
"""

from __future__ import annotations

import struct
from base64 import b64encode
from typing import Literal

import msgspec
from pydantic import Field

from shared.protocol import Embed, Request
from shared.schemas.base import Body
from shared.schemas.common_fields import Priority, priority_class
from shared.schemas.openai.completions import Inputs
from shared.schemas.openapi_bounds import Short
from shared.schemas.parameter_fields import parameter_field, priority_field

INPUTS = 32  # of one request of the queue: many workers share what is asked at once, and no result is large


class EmbeddingRequest(Body):
    """The body of POST /v1/embeddings."""

    model: str
    input: Inputs = Field(description="a text, token ids, or a list of either, up to 2048; none is cut")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: of little-endian float32; default float"
    )
    dimensions: int | None = parameter_field("dimensions")
    priority: Priority = priority_field("interactive")
    timeout: float | None = parameter_field("timeout")
    user: Short | None = Field(None, description="accepted, unused")

    def to_requests(self, tenant: str) -> list[Request]:
        """The drafts, each of some of the inputs."""
        inputs = self.input
        return [
            Request(
                id="",
                model=self.model,
                work=Embed(tuple(inputs[first : first + INPUTS]), self.dimensions),
                priority=priority_class(self.priority),
                tenant=tenant,
            )
            for first in range(0, len(inputs), INPUTS)
        ]


class Embedding(msgspec.Struct):
    """`embedding` is a list of numbers, or base64."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"

    @classmethod
    def of(cls, index: int, vector: bytes, *, base64: bool) -> Embedding:
        """`vector`: little-endian float32."""
        if base64:
            return cls(index, b64encode(vector).decode())
        return cls(index, list(struct.unpack(f"<{len(vector) // 4}f", vector)))


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"

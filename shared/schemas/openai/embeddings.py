"""OpenAI's embeddings: the body and the vectors.

Reference: OpenAI API, "Create embeddings".
"""

from __future__ import annotations

import struct
from base64 import b64encode
from typing import Literal

import msgspec
from pydantic import Field

from shared.protocol import Embed, PriorityClass, Request
from shared.schemas.common_fields import PriorityField, priority_class
from shared.schemas.neutral_fields import RequestIdField, Unused
from shared.schemas.openai.completions import Inputs
from shared.schemas.parameter_fields import ModelName, parameter_field

MAX_INPUTS = 32  # in one queued request, so that workers share the inputs of a call, and results stay small


class EmbeddingRequest(RequestIdField):
    """Body of POST /v1/embeddings."""

    model: ModelName = ""
    input: Inputs = Field(description="a text, token ids, or a list of up to 2048 of either; never truncated")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64 encodes little-endian float32; default float"
    )
    dimensions: int | None = parameter_field("dimensions")
    priority: PriorityField = parameter_field("priority", default="interactive")
    timeout: float | None = parameter_field("timeout")
    user: Unused = None
    input_type: Unused = None
    truncate: Unused = None

    def to_requests(self, tenant: str) -> list[Request]:
        """Return drafts that share the inputs, in order."""
        inputs = self.input
        return [
            Request(
                id="",
                model=self.model,
                work=Embed(tuple(inputs[first : first + MAX_INPUTS]), self.dimensions),
                priority=priority_class(self.priority, PriorityClass.INTERACTIVE),
                tenant=tenant,
            )
            for first in range(0, len(inputs), MAX_INPUTS)
        ]


class Embedding(msgspec.Struct):
    """One vector; `embedding` is a list of numbers, or base64."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"

    @classmethod
    def from_vector(cls, index: int, vector: bytes, *, base64: bool) -> Embedding:
        """Return the embedding of a little-endian float32 vector."""
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

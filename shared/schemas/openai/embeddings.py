"""OpenAI's embeddings: the body and the vectors.

Reference: OpenAI API, "Create embeddings".
"""

from __future__ import annotations

from typing import Literal

import msgspec
from pydantic import Field

from shared.protocol import Embed, Request
from shared.schemas.encoder_fields import EncoderFields, shares
from shared.schemas.neutral_fields import Unused
from shared.schemas.openai.completions import Inputs
from shared.schemas.parameter_fields import parameter_field
from shared.schemas.vector_fields import VectorFields


class EmbeddingRequest(EncoderFields, VectorFields):
    """Body of POST /v1/embeddings."""

    input: Inputs = Field(
        description="a text, token ids, or a list of up to 2048 of either; cut by truncate_prompt_tokens only"
    )
    dimensions: int | None = parameter_field("dimensions")
    add_special_tokens: bool | None = parameter_field("add_special_tokens")
    use_activation: bool | None = Field(None, description="scale the vectors to length 1; default true")
    input_type: Unused = None
    truncate: Unused = None

    def to_requests(self, tenant: str) -> list[Request]:
        """Return drafts that share the inputs, in order."""
        activation = self.use_activation is not False
        return self.drafts(
            (Embed(share, self.dimensions, activation, self.vector_type) for share in shares(self.input)), tenant
        )


class Embedding(msgspec.Struct):
    """One vector; `embedding` is a list of numbers, or base64."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"

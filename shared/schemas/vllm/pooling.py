"""Outputs of encoders: the body and the answer. Reference: vLLM 0.32, entrypoints/pooling/pooling."""

from __future__ import annotations

from typing import Literal

import msgspec
from pydantic import Field

from shared.protocol import PoolTask, Request
from shared.schemas.base import refuse_unless_neutral
from shared.schemas.neutral_fields import NOT_SUPPORTED, Unsupported
from shared.schemas.openai.embeddings import EmbeddingUsage
from shared.schemas.vector_fields import VectorFields
from shared.schemas.vllm.input_fields import InputFields


class PoolingRequest(InputFields, VectorFields):
    """Body of POST /pooling."""

    task: PoolTask | None = Field(
        None, description="what to return, of each whole input or of its tokens; default: the model's own"
    )
    dimensions: Unsupported = None

    _refuse_dimensions = refuse_unless_neutral({"dimensions": (None,)}, NOT_SUPPORTED)

    def to_requests(self, tenant: str) -> list[Request]:
        return self.pools(tenant, self.task, self.vector_type)


class Pooled(msgspec.Struct):
    """Output of one input: numbers, a list of numbers for each token, or the numbers in base64."""

    index: int
    data: list[float | list[float]] | str
    object: Literal["pooling"] = "pooling"


class PooledList(msgspec.Struct):
    id: str
    created: int
    model: str
    data: list[Pooled]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"

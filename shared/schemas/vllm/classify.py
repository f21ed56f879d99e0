"""Classes of texts: the body and the answer. Reference: vLLM 0.32, entrypoints/pooling/classify."""

from __future__ import annotations

from typing import Literal

import msgspec

from shared.protocol import Request
from shared.schemas.openai.embeddings import EmbeddingUsage
from shared.schemas.vllm.input_fields import InputFields


class ClassifyRequest(InputFields):
    """Body of POST /classify."""

    def to_requests(self, tenant: str) -> list[Request]:
        return self.pools(tenant, "classify")


class Classification(msgspec.Struct):
    """Classes of one text; `probs` are in the order of the model's labels, and `label` is that of the largest."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassificationList(msgspec.Struct):
    id: str
    created: int
    model: str
    data: list[Classification]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"

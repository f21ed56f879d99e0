"""OpenAI's embeddings; many inputs become several requests in the queue."""

from __future__ import annotations

from producer_api.answers.encoder_call import EncoderCall
from producer_api.answers.encoders import embedding_list
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import OPENAI
from producer_api.openapi.examples import EMBEDDING_MODEL
from producer_api.openapi.parameters import IDEMPOTENCY
from shared.schemas.openai.embeddings import EmbeddingList, EmbeddingRequest

EMBEDDINGS = EncoderCall("embedding", EmbeddingRequest, embedding_list)
ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/embeddings",
        EMBEDDINGS.create,
        group="embeddings",
        errors=OPENAI,
        charged=True,
        batchable=EMBEDDINGS.parse,
        summary="Embed texts",
        tag="OpenAI",
        body=EmbeddingRequest,
        parameters=[IDEMPOTENCY],
        responses=(ResponseDoc("a vector for each input", EmbeddingList),),
        failures=(400, 404, 409, 413, 415, 422, 429, 500, 503, 504),
        examples={
            "Two texts": {"model": EMBEDDING_MODEL, "input": ["a mill wheel", "a water wheel"]},
            "Short vectors": {"model": EMBEDDING_MODEL, "input": "a mill wheel", "dimensions": 8},
        },
    ),
)

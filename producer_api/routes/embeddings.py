"""OpenAI's embeddings; many inputs become several requests in the queue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.parsed_body import ParsedBody
from producer_api.answers.embeddings import embedding_list
from producer_api.answers.reply import Reply
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import OPENAI
from producer_api.http.headers import idempotency_key
from producer_api.http.json_body import make_drafts, read_body
from producer_api.openapi.document import IDEMPOTENCY
from producer_api.openapi.examples import EMBEDDING_MODEL
from producer_api.services import Context
from shared.protocol import Request as Draft
from shared.schemas.openai.embeddings import EmbeddingList, EmbeddingRequest
from shared.schemas.parsing import validate
from shared.schemas.unknown_fields import ignored_fields
from shared.token_log.answer import Answer


async def create(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, EmbeddingRequest)
    key = await idempotency_key(request, tenant=caller.tenant, kind="embedding", body=body)
    made = await make_drafts(request, lambda: body.to_requests(caller.tenant))
    admission = await context.gateway.submit_all(made, principal=caller, seed=0, timeout_s=body.timeout, key=key)
    reply = Reply(context, request.state.facts, admission, detached=key is not None)
    base64 = body.encoding_format == "base64"
    return await reply.complete(request, partial(embedding_list, admission.request, base64=base64))


def parse_embedding(data: bytes, tenant: str, *, strict_fields: bool) -> ParsedBody:
    """Read a body outside of HTTP. Raises InvalidRequest, MalformedBody."""
    body = validate(data, EmbeddingRequest, strict_fields=strict_fields)

    def word(requests: Sequence[Draft], answer: Answer, _: str | None) -> Any:
        return embedding_list(requests[0], answer, base64=body.encoding_format == "base64")

    return ParsedBody(
        tuple(body.to_requests(tenant)),
        0,
        body.timeout,
        word,
        body.priority is not None,
        ignored_fields(body),
    )


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/embeddings",
        create,
        group="embeddings",
        errors=OPENAI,
        charged=True,
        batchable=parse_embedding,
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

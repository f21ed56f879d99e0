"""OpenAI's embeddings; many inputs are several requests of the queue."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from producer_api.answers.embeddings import embedding_list
from producer_api.answers.reply import Reply
from producer_api.auth.principal import Caller
from producer_api.http.endpoint import Route
from producer_api.http.headers import idempotency_key
from producer_api.http.json_body import drafts, read_body
from producer_api.openapi.document import IDEMPOTENCY, body_of, failures, struct_response
from producer_api.services import Context
from shared.schemas.openai.embeddings import EmbeddingList, EmbeddingRequest


def embeddings_router(context: Context) -> APIRouter:
    router = APIRouter(
        route_class=Route, prefix="/v1/embeddings", tags=["OpenAI"], dependencies=[context.allow("embeddings")]
    )

    @router.post(
        "",
        summary="Embed texts",
        openapi_extra=body_of(EmbeddingRequest) | {"parameters": [IDEMPOTENCY]},
        responses={
            **failures("openai", 400, 404, 409, 413, 415, 422, 429, 500, 503, 504),
            200: struct_response("a vector for each input", EmbeddingList),
        },
    )
    async def create(request: Request, caller: Caller) -> Response:
        body = await read_body(request, EmbeddingRequest)
        key = await idempotency_key(request, tenant=caller.tenant, kind="embedding", body=body)
        made = await drafts(request, lambda: body.to_requests(caller.tenant))
        admission = await context.gateway.submit_all(
            made, principal=caller, seed=0, timeout_s=body.timeout, key=key
        )
        reply = Reply(context, request.state.facts, admission, detached=key is not None)
        base64 = body.encoding_format == "base64"
        return await reply.complete(request, partial(embedding_list, admission.request, base64=base64))

    return router

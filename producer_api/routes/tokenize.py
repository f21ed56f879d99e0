"""Tokenizing and detokenizing, in vLLM's shape.

A worker of the model does it, asked by the queue like for an answer: the front end needs no model's files, and it
does not matter which machine has them. So it waits its turn, too; LIMIT bounds that.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.answers.reply import Reply
from producer_api.auth.principal import Caller, Principal
from producer_api.http.endpoint import Route
from producer_api.http.json_body import drafts, read_body
from producer_api.openapi.document import body_of, failures, struct_response
from producer_api.services import Context
from shared.schemas.native.tokenize import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens
from shared.token_log.answer import Answer, result_of

LIMIT = 30.0  # seconds until a worker must have had time for it


def tokenize_router(context: Context) -> APIRouter:
    router = APIRouter(route_class=Route, tags=["Tokens"], dependencies=[context.allow("tokenize")])
    refused = failures("openai", 400, 404, 409, 413, 415, 429, 500, 503, 504)

    @router.post(
        "/tokenize",
        summary="Turn a text or a chat into token ids",
        openapi_extra=body_of(TokenizeRequest),
        responses={**refused, 200: struct_response("the token ids", Tokens)},
    )
    async def tokenize(request: Request, caller: Caller) -> Response:
        body = await read_body(request, TokenizeRequest)
        reply = await _ask(context, request, caller, body)
        async with redis_deadline():
            limit = (await context.catalog.find(body.model)).max_model_len or None

        def word(answer: Answer) -> Tokens:
            found = result_of(answer)
            strings = list(found.pieces) if body.return_token_strs else None
            return Tokens(len(found.tokens), limit, list(found.tokens), strings)

        return await reply.complete(request, word)

    @router.post(
        "/detokenize",
        summary="Turn token ids into their text",
        openapi_extra=body_of(DetokenizeRequest),
        responses={**refused, 200: struct_response("the text", Detokenized)},
    )
    async def detokenize(request: Request, caller: Caller) -> Response:
        body = await read_body(request, DetokenizeRequest)
        reply = await _ask(context, request, caller, body)
        return await reply.complete(request, lambda answer: Detokenized(result_of(answer).text))

    return router


async def _ask(
    context: Context, request: Request, caller: Principal, body: TokenizeRequest | DetokenizeRequest
) -> Reply:
    [draft] = await drafts(request, lambda: [body.to_request(caller.tenant)])
    admission = await context.gateway.submit(draft, principal=caller, seed=0, timeout_s=LIMIT)
    return Reply(context, request.state.facts, admission, detached=False)

"""OpenAI's chat completions, streamed and whole.

A client that leaves cancels its request, unless it gave an Idempotency-Key: then the answer goes on, and the same
POST joins it, a stream after the Last-Event-ID.
"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from producer_api.answers.chat import ChatFraming, completion
from producer_api.answers.reply import Reply
from producer_api.auth.principal import Caller, Principal
from producer_api.http.endpoint import Route
from producer_api.http.headers import idempotency_key, resume_point
from producer_api.http.json_body import drafts, read_body
from producer_api.openapi.document import ENDED, IDEMPOTENCY, RESUMING, body_of, failures, sse_response
from producer_api.services import Context
from shared.schemas.openai.chat import ChatCompletion, ChatRequest
from shared.token_log.answer import nothing_after

FAILURES = failures("openai", 400, 404, 409, 413, 415, 422, 429, 500, 503, 504)


def chat_router(context: Context) -> APIRouter:
    router = APIRouter(route_class=Route, prefix="/v1/chat", tags=["OpenAI"], dependencies=[context.allow("chat")])
    described = body_of(ChatRequest) | {"parameters": [IDEMPOTENCY, RESUMING]}

    @router.post(
        "/completions",
        summary="Create a chat completion",
        openapi_extra=described,
        responses={
            **FAILURES,
            **ENDED,
            **sse_response("the completion; with `stream`, its chunks", ChatCompletion),
        },
    )
    async def create(request: Request, caller: Caller) -> Response:
        body = await read_body(request, ChatRequest)
        return await _answer(context, request, caller, body, stream=bool(body.stream))

    @router.post(
        "/completions/stream",
        summary="Create a chat completion that is always streamed",
        openapi_extra=described,
        responses={**FAILURES, **ENDED, **sse_response("the completion's chunks", None)},
    )
    async def create_stream(request: Request, caller: Caller) -> Response:
        body = await read_body(request, ChatRequest)
        return await _answer(context, request, caller, body, stream=True)

    return router


async def _answer(
    context: Context, request: Request, caller: Principal, body: ChatRequest, *, stream: bool
) -> Response:
    key = await idempotency_key(request, tenant=caller.tenant, kind="chat", body=body)
    after = resume_point(request, resumable=stream and key is not None)
    [draft] = await drafts(request, lambda: [body.to_request(caller.tenant, stream=stream)])
    admission = await context.gateway.submit(
        draft,
        principal=caller,
        seed=body.seed,
        timeout_s=body.timeout,
        key=key,
        resuming=after >= 0,
    )
    admitted = admission.request
    reply = Reply(context, request.state.facts, admission, detached=key is not None)
    if after >= 0 and nothing_after(await context.request_control.record(admitted.id, caller.tenant), after):
        return Response(status_code=204)
    fingerprint = await context.gateway.fingerprint(admitted.model)
    if not stream:
        return await reply.complete(request, partial(completion, admitted, fingerprint=fingerprint))
    framing = ChatFraming(
        admitted,
        include_usage=body.include_usage,
        fingerprint=fingerprint,
        after=after,
        resumable=key is not None,
    )
    return reply.stream(framing, after=after, eager=after >= 0)

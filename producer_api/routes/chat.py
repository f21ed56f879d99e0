"""OpenAI's chat completions, streamed and whole.

A client that leaves cancels its request, unless it gave an Idempotency-Key: then the answer goes on, and the same
POST joins it, a stream after the Last-Event-ID.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from producer_api.attend import STOPPING, ClientGone, Stopping
from producer_api.body import read_body
from producer_api.completion import ChatFraming, completion
from producer_api.context import Context
from producer_api.gateway.admit import Admission
from producer_api.gateway.principal import Tenant
from producer_api.headers import REPLAYED, idempotency_key, resume_point
from producer_api.openapi import IDEMPOTENCY, RESUMING, Responses, body_of, failures, sse_response
from producer_api.sse import Events, EventStream
from shared.delivery.answer import collect, nothing_after
from shared.errors import HeadraceError, InvalidRequest
from shared.schemas.chat import ChatCompletion, ChatRequest

FAILURES = failures("openai", 400, 404, 409, 413, 415, 422, 429, 500, 503, 504)
ENDED: Responses = {204: {"description": "nothing comes after Last-Event-ID: the answer has ended"}}


def chat_router(context: Context) -> APIRouter:
    router = APIRouter(prefix="/v1/chat", tags=["OpenAI"])
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
    async def create(request: Request, tenant: Tenant) -> Response:
        body = await read_body(request, ChatRequest)
        return await _answer(context, request, tenant, body, stream=bool(body.stream))

    @router.post(
        "/completions/stream",
        summary="Create a chat completion that is always streamed",
        openapi_extra=described,
        responses={**FAILURES, **ENDED, **sse_response("the completion's chunks", None)},
    )
    async def create_stream(request: Request, tenant: Tenant) -> Response:
        body = await read_body(request, ChatRequest)
        return await _answer(context, request, tenant, body, stream=True)

    return router


async def _answer(context: Context, request: Request, tenant: str, body: ChatRequest, *, stream: bool) -> Response:
    key = idempotency_key(request, tenant=tenant, kind="chat", body=body.model_dump_json())
    after = resume_point(request)
    if after >= 0 and not (stream and key is not None):
        raise InvalidRequest(
            "Last-Event-ID resumes a stream that was begun with an Idempotency-Key", param="Last-Event-ID"
        )
    draft = body.to_request(tenant, stream=stream)
    admission = await context.gateway.submit(
        draft, seed=body.seed, within=body.timeout, key=key, resuming=after >= 0
    )
    admitted = admission.request
    stopwatch = context.time(context.note(request, admitted))
    resumed = after >= 0
    if resumed and nothing_after(await context.gateway.record(admitted.id, tenant), after):
        return Response(status_code=204)
    followed = context.backend.token_log.follow(admitted.id, after, idle=context.settings.keepalive)
    events = stopwatch.watch(followed)

    def abandon() -> None:
        stopwatch.finish = "abandoned"
        context.gateway.abandon(admitted.id)

    leave = abandon if key is None else None
    if not stream:
        return await _whole(context, request, admission, events, leave)
    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    framing = ChatFraming(admitted, include_usage=include_usage, after=after, resumable=key is not None)
    told = REPLAYED if admission.joined else {}
    return EventStream(events, framing, context.attendance, eager=resumed, abandon=leave, headers=told)


async def _whole(
    context: Context, request: Request, admission: Admission, events: Events, leave: Callable[[], None] | None
) -> Response:
    try:
        answer = await context.attendance.attend(request.receive, collect(events), resumable=leave is None)
    except (ClientGone, Stopping, HeadraceError) as error:
        if leave is not None:
            leave()
        raise (STOPPING if isinstance(error, Stopping) else error) from None
    content = msgspec.json.encode(completion(admission.request, answer))
    headers = REPLAYED if admission.joined else {}
    return Response(content, headers=headers, media_type="application/json")

"""OpenAI's completions of plain texts, streamed and whole; one HTTP request may ask for many."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from producer_api.answers.completions import TextFraming, text_completion
from producer_api.answers.reply import Reply
from producer_api.auth.principal import Caller, Principal
from producer_api.http.endpoint import Route
from producer_api.http.headers import idempotency_key, resume_places
from producer_api.http.json_body import drafts, read_body
from producer_api.openapi.document import ENDED, IDEMPOTENCY, PLACE, body_of, failures, sse_response
from producer_api.services import Context
from shared.schemas.openai.completions import Completion, CompletionRequest
from shared.token_log.answer import before_end, nothing_after


def completions_router(context: Context) -> APIRouter:
    router = APIRouter(
        route_class=Route, prefix="/v1/completions", tags=["OpenAI"], dependencies=[context.allow("completions")]
    )

    @router.post(
        "",
        summary="Complete texts",
        openapi_extra=body_of(CompletionRequest) | {"parameters": [IDEMPOTENCY, PLACE]},
        responses={
            **failures("openai", 400, 404, 409, 413, 415, 422, 429, 500, 503, 504),
            **ENDED,
            **sse_response("the completion; with `stream`, chunks of the same shape", Completion),
        },
    )
    async def create(request: Request, caller: Caller) -> Response:
        body = await read_body(request, CompletionRequest)
        return await _answer(context, request, caller, body)

    return router


async def _answer(context: Context, request: Request, caller: Principal, body: CompletionRequest) -> Response:
    stream, echo = bool(body.stream), bool(body.echo)
    made = await drafts(request, lambda: body.to_requests(caller.tenant, stream=stream))
    key = await idempotency_key(request, tenant=caller.tenant, kind="completion", body=body)
    after = resume_places(request, len(made), resumable=stream and key is not None)
    resumed = max(after) >= 0
    admission = await context.gateway.submit_all(
        made, principal=caller, seed=body.seed, timeout_s=body.timeout, key=key, resuming=resumed
    )
    requests = admission.requests
    reply = Reply(context, request.state.facts, admission, detached=key is not None)
    fingerprint = await context.gateway.fingerprint(body.model)
    if not stream:
        return await reply.complete(request, partial(text_completion, requests, echo=echo, fingerprint=fingerprint))
    if resumed:
        records = [await context.request_control.record(each.id, caller.tenant) for each in requests]
        if all(nothing_after(record, seq) for record, seq in zip(records, after, strict=True)):
            return Response(status_code=204)
        after = [before_end(record, seq) for record, seq in zip(records, after, strict=True)]
    framing = TextFraming(
        requests,
        echo=echo,
        include_usage=body.include_usage,
        after=after,
        resumable=key is not None,
        fingerprint=fingerprint,
    )
    again = resumed and body.logprobs is not None  # their offsets count what was told before
    return reply.stream(framing, after=after, eager=resumed, again=again)

"""OpenAI's chat completions, streamed or complete.

A client that disconnects cancels its request, unless it sent an Idempotency-Key: then the answer continues, and the
same POST returns it; a stream resumes after Last-Event-ID.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.parsed_body import ParsedBody, refuse_stream
from producer_api.answers.answer_form import AnswerForm
from producer_api.answers.chat import ChatFraming, completion
from producer_api.answers.reply import Reply
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import OPENAI
from producer_api.http.headers import idempotency_key, resume_point
from producer_api.http.json_body import make_drafts, read_body
from producer_api.openapi.examples import SERVED_MODEL
from producer_api.openapi.parameters import IDEMPOTENCY, LAST_EVENT_ID, NOTHING_LEFT
from producer_api.services import Context
from shared.protocol import Request as Draft
from shared.schemas.openai.chat import ChatCompletion, ChatRequest, Chunk
from shared.schemas.parsing import validate
from shared.schemas.unknown_fields import ignored_fields
from shared.token_log.answer import Answer, nothing_after


async def create(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, ChatRequest)
    return await answer(context, request, caller, body, stream=bool(body.stream))


async def create_stream(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, ChatRequest)
    return await answer(context, request, caller, body, stream=True)


async def answer(
    context: Context, request: Request, caller: Principal, body: ChatRequest, *, stream: bool
) -> Response:
    key = await idempotency_key(request, tenant=caller.tenant, kind="chat", body=body)
    after = resume_point(request, resumable=stream and key is not None)
    [draft] = await make_drafts(request, lambda: [body.to_request(caller.tenant)])
    admission = await context.gateway.submit(
        draft,
        principal=caller,
        seed=body.given_seed,
        timeout_s=body.timeout,
        key=key,
        resuming=after >= 0,
    )
    admitted = admission.request
    reply = Reply(context, request.state.facts, admission, detached=key is not None)
    prompt_tokens = 0
    if after >= 0:
        record = await context.request_control.record(admitted.id, caller.tenant)
        if nothing_after(record, after):
            return Response(status_code=204)
        prompt_tokens = record.prompt_tokens
    form = AnswerForm.from_body(body)
    fingerprint = await context.gateway.fingerprint(admitted)
    if not stream:
        return await reply.complete(request, partial(completion, admitted, form=form, fingerprint=fingerprint))
    framing = ChatFraming(
        admitted,
        form,
        fingerprint=fingerprint,
        after=after,
        prompt_tokens=prompt_tokens,
        resumable=key is not None,
    )
    return reply.stream(framing, after=after, eager=after >= 0)


def parse_chat(data: bytes, tenant: str, *, strict_fields: bool) -> ParsedBody:
    """Read a body outside of HTTP. Raises InvalidRequest, MalformedBody."""
    body = validate(data, ChatRequest, strict_fields=strict_fields)
    refuse_stream(body.stream)
    form = AnswerForm.from_body(body)

    def word(requests: Sequence[Draft], answer: Answer, fingerprint: str | None) -> Any:
        return completion(requests[0], answer, form, fingerprint)

    drafts = (body.to_request(tenant),)
    return ParsedBody(drafts, body.given_seed, body.timeout, word, body.priority is not None, ignored_fields(body))


_QUESTION = {
    "model": SERVED_MODEL,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 64,
}
_PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}
_endpoint = partial(
    Endpoint,
    group="chat",
    errors=OPENAI,
    charged=True,
    tag="OpenAI",
    body=ChatRequest,
    parameters=[IDEMPOTENCY, LAST_EVENT_ID],
    failures=(400, 404, 409, 413, 415, 422, 429, 500, 503, 504),
)
ENDPOINTS = (
    _endpoint(
        "POST",
        "/v1/chat/completions",
        create,
        batchable=parse_chat,
        summary="Create a chat completion",
        responses=(
            ResponseDoc("the completion; with `stream`, its chunks", ChatCompletion, events=(Chunk,)),
            NOTHING_LEFT,
        ),
        examples={
            "A question": _QUESTION,
            "Streamed, with usage": {**_QUESTION, "stream": True, "stream_options": {"include_usage": True}},
            "Constrained by a JSON schema": {
                **_QUESTION,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "place", "strict": True, "schema": _PLACE},
                },
            },
            "With log-probabilities": {**_QUESTION, "max_tokens": 4, "logprobs": True, "top_logprobs": 3},
        },
    ),
    _endpoint(
        "POST",
        "/v1/chat/completions/stream",
        create_stream,
        summary="Create a chat completion that is always streamed",
        responses=(ResponseDoc("the chunks of the completion", events=(Chunk,)), NOTHING_LEFT),
        examples={"A question": _QUESTION},
    ),
)

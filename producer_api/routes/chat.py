"""OpenAI's chat completions, streamed and whole. A client that leaves cancels its request.

A stream that fails after it began ends with `data: {"error": {…}}` and no `[DONE]`: the SDKs raise at the error,
and a client that only looks for `[DONE]` sees that the answer is not whole.
"""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from producer_api.answer import Answer, collect, ending, follow_timed
from producer_api.attend import ClientGone, Stopping
from producer_api.body import read_body
from producer_api.context import TENANT, Context
from producer_api.gateway.errors import openai_error
from producer_api.openapi import body_of, failures, sse_response
from producer_api.schemas.chat import (
    AnswerMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    Chunk,
    ChunkChoice,
    Delta,
    Usage,
)
from producer_api.sse import STOPPING, EventStream
from shared.errors import HeadraceError
from shared.protocol import Request as InferenceRequest
from shared.protocol import TokenEvent
from shared.protocol import Usage as TokenUsage

FAILURES = failures("openai", 400, 404, 409, 413, 415, 500, 503)


def chat_router(context: Context) -> APIRouter:
    router = APIRouter(prefix="/v1/chat", tags=["OpenAI"])

    @router.post(
        "/completions",
        summary="Create a chat completion",
        openapi_extra=body_of(ChatRequest),
        responses={**FAILURES, **sse_response("the completion; with `stream`, its chunks", ChatCompletion)},
    )
    async def create(request: Request) -> Response:
        body = await read_body(request, ChatRequest)
        return await _answer(context, request, body, stream=bool(body.stream))

    @router.post(
        "/completions/stream",
        summary="Create a chat completion that is always streamed",
        openapi_extra=body_of(ChatRequest),
        responses={**FAILURES, **sse_response("the completion's chunks", None)},
    )
    async def create_stream(request: Request) -> Response:
        return await _answer(context, request, await read_body(request, ChatRequest), stream=True)

    return router


async def _answer(context: Context, request: Request, body: ChatRequest, *, stream: bool) -> Response:
    admitted = await context.gateway.submit(body.to_request(TENANT, stream=stream), seed=body.seed)
    stopwatch = context.time(context.note(request, admitted))
    events = follow_timed(context.backend.token_log, admitted.id, stopwatch, idle=context.settings.keepalive)

    def abandon() -> None:
        stopwatch.finish = "abandoned"
        context.gateway.abandon(admitted.id)

    if stream:
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        framing = ChatFraming(admitted, include_usage=include_usage)
        return EventStream(events, framing, context.attendance, eager=False, abandon=abandon)
    try:
        answer = await context.attendance.attend(request.receive, collect(events))
    except ClientGone:
        abandon()
        raise
    except (Stopping, HeadraceError) as error:
        abandon()
        raise (STOPPING if isinstance(error, Stopping) else error) from None
    return Response(msgspec.json.encode(completion(admitted, answer)), media_type="application/json")


def completion_id(request: InferenceRequest) -> str:
    return "chatcmpl-" + request.id.removeprefix("req_")


def completion(request: InferenceRequest, answer: Answer) -> ChatCompletion:
    """The whole answer in OpenAI's shape. Raises what the request failed of."""
    assert answer.terminal is not None
    if (error := ending(answer.terminal)) is not None:
        raise error
    return ChatCompletion(
        id=completion_id(request),
        created=int(request.created_at),
        model=request.model,
        choices=[
            Choice(index, AnswerMessage(choice.text), choice.finish_reason or "stop")
            for index, choice in answer.choices
        ],
        usage=_usage(answer.terminal.usage),
    )


def _usage(usage: TokenUsage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens)


class ChatFraming:
    """OpenAI's chunks: for each choice a role, text, a finish reason; then maybe the usage; then [DONE]."""

    def __init__(self, request: InferenceRequest, *, include_usage: bool) -> None:
        self._n = request.params.n
        self._begun = False
        self._include_usage = include_usage
        usage = None if include_usage else msgspec.UNSET
        self._chunk = Chunk(completion_id(request), int(request.created_at), request.model, [], usage=usage)
        self._encode = msgspec.json.Encoder().encode

    def event(self, event: TokenEvent) -> bytes:
        chunks: list[bytes] = []
        if not self._begun and event.tokens:
            self._begun = True
            chunks += [self._choice(i, Delta(content="", role="assistant")) for i in range(self._n)]
        texts: dict[int, str] = {}
        for token in event.tokens:
            if token.text:
                texts[token.choice] = texts.get(token.choice, "") + token.text
        chunks += [self._choice(index, Delta(text)) for index, text in texts.items()]
        for token in event.tokens:
            if token.finish_reason is not None:
                chunks.append(self._choice(token.choice, Delta(), token.finish_reason.value))
        if event.terminal is not None:
            if (error := ending(event.terminal)) is not None:
                return _frames(event.last_seq, [*chunks, self._encode(openai_error(error))])
            if self._include_usage:
                chunks.append(self._usage_chunk(event.terminal.usage))
            chunks.append(b"[DONE]")
        return _frames(event.last_seq, chunks)

    def interruption(self, error: HeadraceError) -> bytes:
        return b"data: %b\n\n" % self._encode(openai_error(error))

    def _choice(self, index: int, delta: Delta, finish_reason: str | None = None) -> bytes:
        self._chunk.choices = [ChunkChoice(index, delta, finish_reason)]
        return self._encode(self._chunk)

    def _usage_chunk(self, usage: TokenUsage) -> bytes:
        return self._encode(msgspec.structs.replace(self._chunk, choices=[], usage=_usage(usage)))


def _frames(seq: int, chunks: list[bytes]) -> bytes:
    """The chunks of one event. The id comes with the last: whoever saw less has not seen the event."""
    if not chunks:
        return b""
    last = b"id: %d\ndata: %b\n\n" % (seq, chunks[-1])
    return b"".join([b"data: %b\n\n" % chunk for chunk in chunks[:-1]] + [last])

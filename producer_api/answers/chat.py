"""Answers as OpenAI chat completions, complete and in chunks.

Reference: OpenAI API, "The chat completion object" and "The chat completion chunk object".
"""

from __future__ import annotations

import msgspec

from producer_api.answers.openai_chunks import by_choice, frames, interruption, usage_of
from producer_api.http.errors import openai_error
from shared.errors import HeadraceError
from shared.protocol import FinishReason, Request, StopReason, TokenEvent
from shared.protocol import Usage as TokenUsage
from shared.schemas.common_fields import shown_stop_reason
from shared.schemas.openai.chat import (
    AnswerMessage,
    ChatCompletion,
    Choice,
    Chunk,
    ChunkChoice,
    Delta,
    Logprobs,
)
from shared.schemas.tools import DeltaCall, collect_calls
from shared.token_log.answer import Answer, end_of, ending


def completion_id(request: Request) -> str:
    return "chatcmpl-" + request.id.removeprefix("req_")


def completion(request: Request, answer: Answer, fingerprint: str | None = None) -> ChatCompletion:
    """Build the chat completion of an answer. Raises the error that the request failed with."""
    terminal = end_of(answer)
    return ChatCompletion(
        id=completion_id(request),
        created=int(request.created_at),
        model=request.model,
        choices=[
            Choice(
                index,
                AnswerMessage.from_text(choice.text, collect_calls(choice.tokens, request.id, index)),
                choice.finish_reason or FinishReason.STOP,
                Logprobs.from_tokens(choice.tokens),
                shown_stop_reason(choice.stop_reason),
            )
            for index, choice in answer.choices
        ],
        usage=usage_of(terminal.usage),
        system_fingerprint=fingerprint,
    )


class ChatFraming:
    """Frames of a streamed chat completion.

    Each choice has a role, text and tool calls, and a finish reason; the usage, if asked for, and [DONE] follow.
    The frames of an event depend only on the request and the event: any replica continues with the same bytes.

    Args:
        fingerprint: the fingerprint of the model.
        after: the last seq that the client has; the role is sent only from the start.
        resumable: the client can resume the stream.
    """

    def __init__(
        self,
        request: Request,
        *,
        include_usage: bool,
        fingerprint: str | None = None,
        after: int = -1,
        resumable: bool = False,
    ) -> None:
        self._id = request.id
        self._n = request.params.n
        self._logprobs = request.params.logprobs is not None
        self._begun = after >= 0
        self._resumable = resumable
        self._include_usage = include_usage
        usage = None if include_usage else msgspec.UNSET
        self._chunk = Chunk(
            completion_id(request),
            int(request.created_at),
            request.model,
            [],
            system_fingerprint=fingerprint,
            usage=usage,
        )
        self._encode = msgspec.json.Encoder().encode

    def opening(self) -> bytes:
        return b""

    def event(self, event: TokenEvent) -> bytes:
        chunks: list[bytes] = []
        if not self._begun and event.tokens:
            self._begun = True
            chunks += [self._choice(i, Delta(content="", role="assistant")) for i in range(self._n)]
        for index, tokens in by_choice(event.tokens):
            text = tokens[0].text if len(tokens) == 1 else "".join([token.text for token in tokens])
            logprobs = Logprobs.from_tokens(tokens) if self._logprobs else None
            if text or logprobs is not None:
                chunks.append(self._choice(index, Delta(text), logprobs=logprobs))
            for call in (call for token in tokens for call in token.calls):
                chunks.append(self._choice(index, Delta(tool_calls=[DeltaCall.from_delta(call, self._id, index)])))
        for token in event.tokens:
            if token.finish_reason is not None:
                chunks.append(
                    self._choice(token.choice, Delta(), token.finish_reason, stop_reason=token.stop_reason)
                )
        if event.terminal is not None:
            chunks += self._empty_choices(event.terminal.empty_choices)
            if (error := ending(event.terminal)) is not None:
                return frames(event.place, [*chunks, self._encode(openai_error(error))])
            if self._include_usage:
                chunks.append(self._usage_chunk(event.terminal.usage))
            chunks.append(b"[DONE]")
        return frames(event.place, chunks)

    def _empty_choices(self, count: int) -> list[bytes]:
        """Return the role and the finish reason of choices without tokens."""
        deltas = ((Delta(content="", role="assistant"), None), (Delta(), FinishReason.LENGTH))
        return [self._choice(i, delta, reason) for i in range(count) for delta, reason in deltas]

    def interruption(self, error: HeadraceError) -> bytes:
        return interruption(error, resumable=self._resumable)

    def _choice(
        self,
        index: int,
        delta: Delta,
        finish_reason: FinishReason | None = None,
        logprobs: Logprobs | None = None,
        stop_reason: StopReason | None = None,
    ) -> bytes:
        self._chunk.choices = [ChunkChoice(index, delta, finish_reason, logprobs, shown_stop_reason(stop_reason))]
        return self._encode(self._chunk)

    def _usage_chunk(self, usage: TokenUsage) -> bytes:
        return self._encode(msgspec.structs.replace(self._chunk, choices=[], usage=usage_of(usage)))

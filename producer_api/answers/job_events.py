"""Answers as the server-sent events of a job."""

from __future__ import annotations

import msgspec

from producer_api.http.sse import RETRY
from shared.errors import HeadraceError
from shared.protocol import CallDelta, ErrorInfo, RequestState, StopReason, Token, TokenEvent
from shared.schemas.common_fields import Usage, WireFinishReason
from shared.schemas.native.jobs import JobPrompt, Logprobs

ENDINGS = {RequestState.COMPLETED: b"done", RequestState.FAILED: b"error", RequestState.CANCELLED: b"cancelled"}


class EventCall(msgspec.Struct, omit_defaults=True):
    """Next part of the tool call `index`; the first part has the name."""

    index: int
    arguments: str
    name: str | None = None

    @classmethod
    def from_delta(cls, call: CallDelta) -> EventCall:
        return cls(call.index, call.arguments, call.name or None)


class EventToken(msgspec.Struct, omit_defaults=True):
    """One token: its id in the vocabulary, and the text, the parts of tool calls or the reasoning that it added."""

    choice: int
    id: int
    text: str
    finish_reason: WireFinishReason | None = None
    logprobs: Logprobs | None = None
    tool_calls: list[EventCall] | None = None
    reasoning: str | None = None
    stop_reason: StopReason | None = None

    @classmethod
    def of(cls, token: Token) -> EventToken:
        """Return a token for clients; nearly all have a text only, and skip the rest."""
        return cls(
            token.choice,
            token.id,
            token.text,
            token.finish_reason,
            Logprobs.from_token(token) if token.logprobs else None,
            [EventCall.from_delta(call) for call in token.calls] if token.calls else None,
            token.reasoning or None,
            token.stop_reason,
        )


class TokensData(JobPrompt, kw_only=True):
    """Data of a `token` event with the tokens seq, seq + 1, …"""

    seq: int
    tokens: list[EventToken]


class EndData(JobPrompt, kw_only=True, omit_defaults=True):
    """Data of the last event. It has what is asked for about the prompt of a job without tokens."""

    seq: int
    state: str
    usage: Usage
    error: ErrorInfo | None = None


class JobFraming:
    """Frames of a job's stream: one `token` event per append, whose id is its last seq, then a final event."""

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode

    def opening(self) -> bytes:
        return b""

    def event(self, event: TokenEvent) -> bytes:
        frame = b""
        if event.tokens:
            tokens = TokensData(seq=event.seq, tokens=list(map(EventToken.of, event.tokens)))
            tokens.add_prompt(event.prompt)
            last = event.seq + len(event.tokens) - 1
            frame = b"id: %d\nevent: token\ndata: %b\n\n" % (last, self._encode(tokens))
        if (end := event.terminal) is not None:
            usage = Usage.from_usage(end.usage)
            ended = EndData(seq=event.last_seq, state=end.state.value, usage=usage, error=end.error)
            if not event.tokens:
                ended.add_prompt(event.prompt)
            data = self._encode(ended)
            frame += b"id: %d\nevent: %b\ndata: %b\n\n" % (event.last_seq, ENDINGS[end.state], data)
        return frame

    def interruption(self, error: HeadraceError) -> bytes:
        return RETRY + b"event: interrupted\ndata: %b\n\n" % self._encode(ErrorInfo.from_error(error))

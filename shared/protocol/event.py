"""The events of an answer: tokens, then one terminal event."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from shared.errors import HeadraceError, error_classes


class FinishReason(StrEnum):
    """Reason for the end of a choice, with OpenAI's name where there is one."""

    STOP = "stop"  # end-of-text token or a stop string
    LENGTH = "length"  # max_tokens or the context was reached
    TOOL_CALLS = "tool_calls"  # like STOP, after a tool call

    @property
    def complete(self) -> bool:
        """Return whether the choice is whole, not cut off by a limit."""
        match self:
            case FinishReason.STOP | FinishReason.TOOL_CALLS:
                return True
            case FinishReason.LENGTH:
                return False


class RequestState(StrEnum):
    """Where a request is in its life; the last three are terminal."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (RequestState.COMPLETED, RequestState.FAILED, RequestState.CANCELLED)


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """How likely a token was, by the model's own distribution (natural logarithms, no temperature or penalties).

    `top` holds (id, logprob, piece) of the likeliest tokens, likeliest first; a piece is a token decoded by itself.
    """

    logprob: float
    top: tuple[tuple[int, float, str], ...] = ()
    piece: str = ""


class CallDelta(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What a token added to its choice's tool call number `index`: its name, which begins it, or more arguments."""

    index: int
    name: str = ""
    arguments: str = ""


class Token(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One generated token.

    `text` is what this token added to its choice's visible text. It may be empty: half a character, or what may
    yet become a stop string, is held back and comes with a later token. What belongs to a tool call is not in
    `text` but in `calls`.
    """

    choice: int
    id: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    calls: tuple[CallDelta, ...] = ()


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """A HeadraceError on the wire."""

    code: str
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: HeadraceError) -> ErrorInfo:
        """Made fit for JSON: a message may quote text with a lone surrogate."""
        return cls(error.code, error.message.encode(errors="replace").decode(), error.param)

    def to_error(self) -> HeadraceError:
        """The error as what it was raised as; an unknown code becomes the base class."""
        return error_classes().get(self.code, HeadraceError)(self.message, param=self.param)


class Usage(msgspec.Struct, frozen=True):
    """Exact token counts of one request, over all its choices."""

    prompt_tokens: int
    completion_tokens: int


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request gave that asked for other work than text; which fields are set is said by its `work`.

    `vectors` has one for each input, as little-endian float32.
    """

    vectors: tuple[bytes, ...] = ()
    tokens: tuple[int, ...] = ()
    pieces: tuple[str, ...] = ()
    text: str = ""


class Terminal(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a request ended; `error` is set exactly when `state` is FAILED, `result` when `work` was done.

    `waited` is in seconds, from the admission until its first worker began.
    """

    state: RequestState
    usage: Usage
    error: ErrorInfo | None = None
    waited: float = 0.0
    result: Result | None = None


class TokenEvent(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One append to a request's TokenLog: tokens seq, seq + 1, …, and, at the end, the terminal event.

    The terminal event takes a seq of its own, after the last token's. `prompt` has no seq: it comes with the first
    token of a request that asks for an echo. Its first token has no log-probability: nothing came before it.
    """

    seq: int
    tokens: tuple[Token, ...] = ()
    terminal: Terminal | None = None
    prompt: tuple[Token, ...] = ()

    @property
    def count(self) -> int:
        """How many seqs this event covers."""
        return len(self.tokens) + (self.terminal is not None)

    @property
    def last_seq(self) -> int:
        return self.seq + self.count - 1

    @property
    def place(self) -> str:
        """Where a reader is that has seen this event."""
        return str(self.last_seq)

    @property
    def finish(self) -> str:
        """Why the request, or the last of its choices that did, ended by this event; empty where none did."""
        if self.terminal is not None and self.terminal.error is not None:
            return self.terminal.error.code
        return next((token.finish_reason for token in reversed(self.tokens) if token.finish_reason), "")

    def after(self, seq: int) -> TokenEvent:
        """This event without what a reader that has seen `seq` already has."""
        if self.seq > seq:
            return self
        return TokenEvent(seq + 1, self.tokens[seq + 1 - self.seq :], self.terminal)

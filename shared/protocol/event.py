"""Events of an answer: tokens, then one terminal event."""

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
    """State of a request; the last three are terminal."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (RequestState.COMPLETED, RequestState.FAILED, RequestState.CANCELLED)


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Log-probability of a token in the model's own distribution: natural, before temperature and penalties.

    `top` holds (id, logprob, piece) of the most likely tokens, the most likely first. A piece is the text of one
    token decoded alone.
    """

    logprob: float
    top: tuple[tuple[int, float, str], ...] = ()
    piece: str = ""


class CallDelta(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Addition of one token to tool call number `index` of its choice: its name, which starts it, or arguments."""

    index: int
    name: str = ""
    arguments: str = ""


class Token(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One generated token.

    `text` is the addition to the choice's visible text. It may be empty: half a character, or the possible start of
    a stop string, is held back until a later token. Text of a tool call is in `calls` instead.
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
    def from_error(cls, error: HeadraceError) -> ErrorInfo:
        """Replace lone surrogates, which a message may quote and JSON cannot carry."""
        return cls(error.code, error.message.encode(errors="replace").decode(), error.param)

    def to_error(self) -> HeadraceError:
        """Return the error as the class that was raised; an unknown code becomes the base class."""
        return error_classes().get(self.code, HeadraceError)(self.message, param=self.param)


class Usage(msgspec.Struct, frozen=True):
    """Exact token counts of one request, over all its choices."""

    prompt_tokens: int
    completion_tokens: int


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Result of a request whose `work` is not an answer in text; the kind of work decides which fields are set.

    `vectors` has one for each input, as little-endian float32. `text` of DescribeTokenizer is JSON.
    """

    vectors: tuple[bytes, ...] = ()
    tokens: tuple[int, ...] = ()
    pieces: tuple[str, ...] = ()
    text: str = ""


class Terminal(msgspec.Struct, frozen=True, omit_defaults=True):
    """End of a request; `error` is set exactly when `state` is FAILED, `result` when `work` was done.

    `waited` is the time from admission until the first worker started, in seconds.
    """

    state: RequestState
    usage: Usage
    error: ErrorInfo | None = None
    waited: float = 0.0
    result: Result | None = None


class TokenEvent(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One append to a request's TokenLog: tokens seq, seq + 1, …, and, at the end, the terminal event.

    The terminal event has a seq of its own, after the last token's. `prompt` has no seq: it accompanies the first
    token of a request with `echo`. Its first token has no log-probability, since no token precedes it.
    """

    seq: int
    tokens: tuple[Token, ...] = ()
    terminal: Terminal | None = None
    prompt: tuple[Token, ...] = ()

    @property
    def count(self) -> int:
        """Return the number of seqs that this event covers."""
        return len(self.tokens) + (self.terminal is not None)

    @property
    def last_seq(self) -> int:
        return self.seq + self.count - 1

    @property
    def place(self) -> str:
        """Return the position of a reader that has this event, as the id to resume after."""
        return str(self.last_seq)

    @property
    def finish(self) -> str:
        """Return the error code or the last finish reason in this event, "" if nothing ended with it."""
        if self.terminal is not None and self.terminal.error is not None:
            return self.terminal.error.code
        return next((token.finish_reason for token in reversed(self.tokens) if token.finish_reason), "")

    def after(self, seq: int) -> TokenEvent:
        """Return this event without the tokens up to `seq`."""
        if self.seq > seq:
            return self
        return TokenEvent(seq + 1, self.tokens[seq + 1 - self.seq :], self.terminal)

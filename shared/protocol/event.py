"""Events of an answer: tokens, then one terminal event."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from shared.error_codes import error_classes
from shared.errors import HeadraceError
from shared.protocol.tensors import Parameter, Tensor


class FinishReason(StrEnum):
    """Reason for the end of a choice, with OpenAI's name where there is one."""

    STOP = "stop"  # end-of-text token, a token of stop_token_ids, or a stop string
    LENGTH = "length"  # max_tokens or the context was reached
    TOOL_CALLS = "tool_calls"  # like STOP, after a tool call
    CONTENT_FILTER = "content_filter"  # an upstream server left the rest out

    @property
    def complete(self) -> bool:
        """Return whether the choice is whole, not cut off by a limit."""
        match self:
            case FinishReason.STOP | FinishReason.TOOL_CALLS:
                return True
            case FinishReason.LENGTH | FinishReason.CONTENT_FILTER:
                return False


StopReason = int | str  # a token of stop_token_ids, or a stop string


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


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Log-probability of a token in the model's own distribution: natural, before temperature and penalties.

    `top` holds (id, logprob, piece) of the most likely tokens, the most likely first. A piece is the text of one
    token alone. `exact` has the bytes of tokens, by id, where they are not those of the piece: of a part of a
    character, and none for a special token that is not in the answer's text. `rank` is the token's place among all,
    from 1; 0 without `prompt_logprobs`.
    """

    logprob: float
    top: tuple[tuple[int, float, str], ...] = ()
    piece: str = ""
    exact: dict[int, bytes] = {}
    rank: int = 0


class CallDelta(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Addition of one token to tool call number `index` of its choice: its name, which starts it, or arguments."""

    index: int
    name: str = ""
    arguments: str = ""


class Token(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """One generated token, or a part of an answer whose tokens are unknown, with an `id` below 0.

    `text` is the addition to the choice's visible text. It may be empty: half a character, or the possible start of
    a stop string, is held back until a later token. Text of a tool call is in `calls` instead, and text of the
    model's reasoning in `reasoning`. `is_reasoning` is true for the tokens of the reasoning without its tags, even
    if a later token adds their text. `stop_reason` is the token of `stop_token_ids` or the stop string that ended
    the choice, None for other ends.
    """

    choice: int
    id: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    calls: tuple[CallDelta, ...] = ()
    reasoning: str = ""
    is_reasoning: bool = False
    stop_reason: StopReason | None = None


def count_reasoning(tokens: Iterable[Token]) -> int:
    """Return the number of tokens of reasoning."""
    count = 0
    for token in tokens:  # on the path of every token, where a sum takes three times as long
        if token.is_reasoning:
            count += 1
    return count


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


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Exact token counts of one request, over all its choices. Tokens of reasoning are completion tokens too.

    `cached_tokens` are those of the prompt that the run with the first token found in its prefix cache.
    """

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cached_tokens + other.cached_tokens,
        )


class PromptUsage(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Exact number of a prompt's tokens, and of those that the run found in its prefix cache."""

    tokens: int
    cached: int = 0


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Result of a request whose `work` is not an answer in text; the kind of work decides which fields are set.

    `vectors` has one for each input or pair, as little-endian numbers, float32 unless the work says otherwise: a
    vector, the score of each of `labels`, or rows of `width` numbers, which have one of these for each token.
    `text` of DescribeTokenizer is JSON. Infer returns `tensors`, the `version` of the model that computed them, and
    its `parameters`. A model that sends several responses to a request sends each as the text of a token, with this
    as JSON, and ends without a result.
    """

    vectors: tuple[bytes, ...] = ()
    width: int = 0
    labels: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    pieces: tuple[str, ...] = ()
    text: str = ""
    tensors: tuple[Tensor, ...] = ()
    version: str = ""
    parameters: dict[str, Parameter] = {}


class Terminal(msgspec.Struct, frozen=True, omit_defaults=True):
    """End of a request; `error` is set exactly when `state` is FAILED, `result` when `work` was done.

    `waited` is the time from admission until the first worker started, in seconds. `empty_choices` is the number of
    choices that ended with LENGTH before a first token, because `max_tokens` is 0.
    """

    state: RequestState
    usage: Usage
    error: ErrorInfo | None = None
    waited: float = 0.0
    result: Result | None = None
    empty_choices: int = 0


class TokenEvent(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """One append to a request's TokenLog: tokens seq, seq + 1, …, and, at the end, the terminal event.

    The terminal event has a seq of its own, after the last token's. `prompt` has no seq: it accompanies the first
    token of a request that asks for its prompt, or the terminal event if there are no tokens. Its first token has
    no log-probability, since no token precedes it. `prompt_usage` accompanies the first token too.
    """

    seq: int
    tokens: tuple[Token, ...] = ()
    terminal: Terminal | None = None
    prompt: tuple[Token, ...] = ()
    prompt_usage: PromptUsage | None = None

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
        if (terminal := self.terminal) is not None:
            if terminal.error is not None:
                return terminal.error.code
            if terminal.empty_choices:
                return FinishReason.LENGTH
        if len(self.tokens) == 1:  # nearly always
            return self.tokens[0].finish_reason or ""
        for token in reversed(self.tokens):
            if token.finish_reason is not None:
                return token.finish_reason
        return ""

    def after(self, seq: int) -> TokenEvent:
        """Return this event without the tokens up to `seq`."""
        if self.seq > seq:
            return self
        return TokenEvent(seq + 1, self.tokens[seq + 1 - self.seq :], self.terminal)

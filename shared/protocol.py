"""The frozen types that cross a process: what is asked, and what is answered, token by token.

JSON on the wire (msgspec), versioned, never pickle. This module knows nothing of queues, engines or HTTP.
"""

from __future__ import annotations

import secrets
import time
from enum import StrEnum

import msgspec

from shared.errors import HeadraceError, error_classes

PROTOCOL_VERSION = 1


class FinishReason(StrEnum):
    """Why a choice ended, in OpenAI's words where they have one."""

    STOP = "stop"  # end-of-text token or a stop string
    LENGTH = "length"  # max_tokens or the context was reached
    TOOL_CALLS = "tool_calls"  # as STOP, and it has called a tool


class PriorityClass(StrEnum):
    """Which of a model's queues a request waits in, most urgent first."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


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


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model made in an earlier turn; `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a chat, already reduced to text.

    An assistant's turn may have `tool_calls`; a tool's answers the call named by `tool_call_id`.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


class Function(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool that the model may call; `parameters` is the JSON schema of its arguments, as JSON text.

    `strict`: every keyword of that schema counts. Otherwise those that a grammar cannot hold are left to the model.
    """

    name: str
    description: str = ""
    parameters: str = ""
    strict: bool = False


class Tools(msgspec.Struct, frozen=True, omit_defaults=True):
    """What may be called, and whether something must be: any function, or the one `named`."""

    functions: tuple[Function, ...]
    required: bool = False
    named: str | None = None
    parallel: bool = True

    @property
    def param(self) -> str:
        """The field that asked for them, for errors to name."""
        return "tools"

    @property
    def must(self) -> bool:
        """The answer is a call."""
        return self.required or self.named is not None

    @property
    def allowed(self) -> tuple[Function, ...]:
        return tuple(each for each in self.functions if self.named in (None, each.name))


class Structured(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an answer must look like; exactly one of these is set.

    Attributes:
        json_schema: a JSON schema, as JSON text.
        strict: every keyword of the schema counts. Otherwise those that a grammar cannot hold are left to the
            model.
        json_object: any JSON object.
        regex: a regular expression for the whole answer.
        choice: one of these texts.
        grammar: EBNF as llama.cpp's GBNF has it; the answer is a `root`.
        param: the field of the request that asked for it, which errors name.
    """

    json_schema: str | None = None
    strict: bool = True
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] = ()
    grammar: str | None = None
    param: str = "structured_outputs"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is chosen and when to stop.

    Attributes:
        max_tokens: most tokens a choice may have; None means what is left of the context.
        temperature: 0 is greedy.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens up to this probability mass.
        min_p: drop tokens less likely than this share of the likeliest.
        presence_penalty, frequency_penalty: OpenAI's, over the tokens generated so far.
        repetition_penalty: transformers', over prompt and generated tokens; 1 is none.
        stop: strings that end a choice and are not part of it.
        seed: the draw of choice c at position p depends only on (seed, c, p). Admission fills it in.
        n: number of choices.
        ignore_eos: go on past the end-of-text token.
        logprobs: log-probabilities to give with each token: None for none, 0 for the token's own, k for the k
            likeliest too.
        logit_bias: what is added to a token's logit, by its id.
        structured_outputs: what the answer must look like; None leaves it free.
        echo: give the prompt's tokens too, and their log-probabilities where `logprobs` asks for any.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    n: int = 1
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    structured_outputs: Structured | None = None
    echo: bool = False


class Embed(msgspec.Struct, frozen=True, tag="embed", omit_defaults=True):
    """The vectors of `inputs`, each a text or token ids, cut to `dimensions` where that is given."""

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None


class Tokenize(msgspec.Struct, frozen=True, tag="tokenize", omit_defaults=True):
    """The token ids of the prompt or the messages.

    Attributes:
        special_tokens: with those that the tokenizer puts around a text.
        generation_prompt: of a chat, up to where its answer begins.
        pieces: and each token as the vocabulary writes it.
    """

    special_tokens: bool = True
    generation_prompt: bool = True
    pieces: bool = False


class Detokenize(msgspec.Struct, frozen=True, tag="detokenize"):
    """The text of the prompt's token ids, special ones as they are written."""


Work = Embed | Tokenize | Detokenize


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One admitted request, as the queue carries it.

    Exactly one of `messages` and `prompt` is set; `tools` go with messages. `work` is what is asked instead of an
    answer in text; Embed has its own inputs, and neither of the two. `created_at` is in seconds since the
    epoch, by the server's clock (Redis TIME), as all times of a request are; from `deadline` on it is not run any
    more. `user` is the client's name for its own user.
    """

    id: str
    model: str
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    params: SamplingParams = msgspec.field(default_factory=SamplingParams)
    tools: Tools | None = None
    work: Work | None = None
    priority: PriorityClass = PriorityClass.STANDARD
    tenant: str = "default"
    user: str = ""
    created_at: float = 0.0
    deadline: float | None = None
    version: int = PROTOCOL_VERSION


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


_encoder = msgspec.json.Encoder()
_event_decoder = msgspec.json.Decoder(TokenEvent)
_request_decoder = msgspec.json.Decoder(Request)


def encode(value: msgspec.Struct) -> bytes:
    """Any type of this module as JSON."""
    return _encoder.encode(value)


def decode_event(data: bytes) -> TokenEvent:
    """Raises msgspec.ValidationError or msgspec.DecodeError where `data` is not a TokenEvent."""
    return _event_decoder.decode(data)


def decode_request(data: bytes) -> Request:
    """Raises msgspec.ValidationError or msgspec.DecodeError where `data` is not a Request."""
    try:
        return _request_decoder.decode(data)
    except UnicodeDecodeError:
        raise msgspec.DecodeError("not UTF-8") from None
    except RecursionError:
        raise msgspec.DecodeError("nested too deep") from None


def new_request_id() -> str:
    """A sortable, unguessable id: 48 bits of milliseconds, then 80 random bits."""
    return f"req_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"

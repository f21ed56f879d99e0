"""What a worker asks of an engine: add, abort, step. Any engine with these methods serves, weights or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from shared.errors import ContextLengthExceeded, HeadraceError, InvalidRequest
from shared.models.worker_registry import Task
from shared.protocol import CallDelta, Message, PriorityClass, Result, SamplingParams, Structured, Token, Tools

if TYPE_CHECKING:  # an engine without weights runs where there is no torch
    from torch import Tensor

MAX_LOGPROBS = 20  # likeliest tokens that may be asked for with each token


class Matcher(Protocol):
    """What a choice may say next: the state of a grammar after the tokens so far.

    A state is derived from the tokens alone: a new matcher that accepted the same tokens is in the same state. So a
    choice goes on on another worker.
    """

    @property
    def finished(self) -> bool:
        """Nothing may follow: the choice ends with the token accepted last."""

    def accept(self, token_id: int) -> bool:
        """Take the next token, the end-of-text token too; False where it does not fit."""

    def fill(self, bitmask: Tensor, row: int) -> None:
        """Say in row `row` of `bitmask` ([rows, vocab / 32] int32, a bit a token) what may come next, end-of-text
        among it. It is called while no token is accepted, perhaps in another thread.
        """


class Reader(Protocol):
    """Tells what a choice says from the tool calls that it makes; its state is derived from the text so far."""

    @property
    def called(self) -> bool:
        """It has made a whole call."""

    def feed(self, text: str, *, last: bool) -> tuple[str, tuple[CallDelta, ...]]:
        """What more text adds to what is said, and to calls; `last` ends it."""


@dataclass(frozen=True)
class EngineRequest:
    """One request, tokenized.

    Attributes:
        prompt: token ids, at least one.
        resumed: for each choice the token ids that it has emitted already, in a former run; generation goes on
            after them and only what is new comes out, with the text that an undisturbed run would have given it.
        priority, tenant: who goes first when not all can run at once.
        prefix_salt: requests of one salt may share the computed beginning of their prompts; others never do.
        lengths: of the inputs to embed, of which `prompt` is then made up.
        dimensions: of the vectors; None for the model's own.
        matcher: makes the grammar of one choice; each choice gets its own, fed with its resumed tokens.
        reader: the same for what finds its tool calls.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    resumed: tuple[tuple[int, ...], ...] = ()
    priority: PriorityClass = PriorityClass.STANDARD
    tenant: str = "default"
    prefix_salt: bytes = b""
    lengths: tuple[int, ...] = ()
    dimensions: int | None = None
    matcher: Callable[[], Matcher] | None = None
    reader: Callable[[], Reader] | None = None


@dataclass(frozen=True)
class EngineOutput:
    """What one step gave one request; `finished` when no choice is left running. With `error` it ended so.

    `prompt` comes with the first token of a request whose params ask for an echo; `result` at the end of one that
    asks for other work than text.
    """

    job_id: str
    tokens: tuple[Token, ...] = ()
    finished: bool = False
    error: HeadraceError | None = None
    prompt: tuple[Token, ...] = ()
    result: Result | None = None


@dataclass(frozen=True)
class EngineStats:
    """Sequences in and before the batch, KV blocks, and how often a sequence gave way.

    `prefix_hits` of `prefix_queries` tokens did not have to be computed, since the engine started.
    """

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


def check_vocabulary(ids: Iterable[int], vocab_size: int, param: str) -> None:
    """Raise InvalidRequest, naming `param`, for the first id that is no token's."""
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(f"token {token_id} is outside the vocabulary of {vocab_size}", param=param)


def too_long(size: int, unit: str, most_tokens: int, param: str) -> ContextLengthExceeded:
    """Return the refusal of a text of `size` units that cannot fit a context of `most_tokens`."""
    return ContextLengthExceeded(
        f"this model's maximum context length is {most_tokens} tokens, and a text of {size} {unit} has more",
        param=param,
    )


class Encoder(Protocol):
    """Text to token ids and back, from any thread. Raises InvalidRequest for what it cannot encode."""

    @property
    def vocab_size(self) -> int: ...

    def encode(
        self, text: str, *, special: bool = True, most_tokens: int | None = None, param: str = "prompt"
    ) -> list[int]:
        """With the `special` tokens that the tokenizer puts around a plain text, if any.

        A text that is certain to have more than `most_tokens` is not tokenized: ContextLengthExceeded is raised.
        Errors name `param`.
        """

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        *,
        generation_prompt: bool = True,
        special: bool = False,
        most_tokens: int | None = None,
    ) -> list[int]:
        """By the chat template: up to where the answer begins, if `generation_prompt`.

        `most_tokens` is that of `encode`.
        """

    def decode_all(self, ids: Sequence[int]) -> str:
        """With special tokens as they are written."""

    def entry(self, token_id: int) -> str:
        """A token as the vocabulary writes it."""


class Form(msgspec.Struct, frozen=True):
    """What an answer has to be: as `structured` says, or text that may call `tools`.

    With both it is as `structured` says, or calls alone; where a tool must be called, calls alone.
    """

    structured: Structured | None
    tools: Tools | None = None

    @property
    def param(self) -> str:
        """The field of the request that asked for it, or for a part of it."""
        return (self.structured or self.tools or Structured()).param


@dataclass(frozen=True)
class Constraint:
    """What an answer is held to: makes a choice's matcher, and what reads tool calls out of its text."""

    matcher: Callable[[], Matcher]
    reader: Callable[[], Reader] | None = None


class Constrainer(Protocol):
    """Makes what answers are held to; may be called from any thread."""

    def start(self, form: Form, *, proven: bool = False) -> Future[Constraint]:
        """Compile, or find, a grammar.

        It may take long, and always ends: with InvalidRequest for what cannot be compiled within the limits.

        Args:
            proven: it was compiled within the limits before, by any worker: they do not apply again.
        """


class Generator(Protocol):
    """A batch that grows and shrinks between steps. One thread calls all but `tokenizer` and `constraints`."""

    @property
    def tokenizer(self) -> Encoder: ...

    @property
    def constraints(self) -> Constrainer | None:
        """None where this engine cannot hold an answer to anything."""

    @property
    def task(self) -> Task:
        """What it does: a request for anything else is refused before it comes here."""

    @property
    def fingerprint(self) -> str:
        """The same for engines whose answers are the same."""

    @property
    def max_model_len(self) -> int: ...

    def add(self, request: EngineRequest) -> None:
        """Raises ContextLengthExceeded or InvalidRequest; what it accepts will end."""

    def abort(self, job_id: str) -> bool:
        """Drop a request and free its blocks, before the next step. False if there is none of that id."""

    def step(self) -> list[EngineOutput]:
        """Compute the next tokens of as many sequences as the budgets allow."""

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        """A step with batch-class work in it may be given up, as if it had not begun, once `urgent` is true."""

    def has_work(self) -> bool: ...

    def stats(self) -> EngineStats: ...

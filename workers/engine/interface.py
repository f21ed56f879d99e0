"""What a worker asks of an engine: add, abort, step. Any engine with these methods serves, weights or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shared.errors import HeadraceError
from shared.protocol import Message, PriorityClass, SamplingParams, Token

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

    def mask(self) -> Tensor | None:
        """[vocab] bool, true where a token may come next, end-of-text among them; None where all may."""


@dataclass(frozen=True)
class EngineRequest:
    """One request, tokenized.

    Attributes:
        prompt: token ids, at least one.
        resumed: for each choice the token ids that it has emitted already, in a former run; generation goes on
            after them and only what is new comes out, with the text that an undisturbed run would have given it.
        priority, tenant: who goes first when not all can run at once.
        prefix_salt: requests of one salt may share the computed beginning of their prompts; others never do.
        matcher: makes the grammar of one choice; each choice gets its own, fed with its resumed tokens.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    resumed: tuple[tuple[int, ...], ...] = ()
    priority: PriorityClass = PriorityClass.STANDARD
    tenant: str = "default"
    prefix_salt: bytes = b""
    matcher: Callable[[], Matcher] | None = None


@dataclass(frozen=True)
class EngineOutput:
    """What one step gave one request; `finished` when no choice is left running. With `error` it ended so."""

    request_id: str
    tokens: tuple[Token, ...] = ()
    finished: bool = False
    error: HeadraceError | None = None


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


class Encoder(Protocol):
    """Text to token ids; may be called from any thread. Raises InvalidRequest for what it cannot encode."""

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: Sequence[Message]) -> list[int]: ...


class Generator(Protocol):
    """A batch that grows and shrinks between steps. One thread calls all but `tokenizer`."""

    @property
    def tokenizer(self) -> Encoder: ...

    @property
    def max_model_len(self) -> int: ...

    def add(self, request: EngineRequest) -> None:
        """Raises ContextLengthExceeded or InvalidRequest; what it accepts will end."""

    def abort(self, request_id: str) -> bool:
        """Drop a request and free its blocks, before the next step. False if there is none of that id."""

    def step(self) -> list[EngineOutput]:
        """Compute the next tokens of as many sequences as the budgets allow."""

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        """A step with batch-class work in it may be given up, as if it had not begun, once `urgent` is true."""

    def has_work(self) -> bool: ...

    def stats(self) -> EngineStats: ...

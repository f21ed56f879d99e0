"""What a worker asks of an engine: add, abort, step. Any engine with these methods serves, weights or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.errors import HeadraceError
from shared.protocol import Message, PriorityClass, SamplingParams, Token


@dataclass(frozen=True)
class EngineRequest:
    """One request, tokenized.

    Attributes:
        prompt: token ids, at least one.
        resumed: for each choice the token ids that it has emitted already, in a former run; generation goes on
            after them and only what is new comes out, with the text that an undisturbed run would have given it.
        prefix_salt: cached prefixes are shared among requests with the same one.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    resumed: tuple[tuple[int, ...], ...] = ()
    priority: PriorityClass = PriorityClass.STANDARD
    tenant: str = "default"
    prefix_salt: bytes = b""


@dataclass(frozen=True)
class EngineOutput:
    """What one step gave one request; `finished` when no choice is left running. With `error` it ended so."""

    request_id: str
    tokens: tuple[Token, ...] = ()
    finished: bool = False
    error: HeadraceError | None = None


@dataclass(frozen=True)
class EngineStats:
    """Sequences in and before the batch, KV blocks, and how often a sequence gave its blocks up."""

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    preemptions: int = 0


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

    def has_work(self) -> bool: ...

    def stats(self) -> EngineStats: ...

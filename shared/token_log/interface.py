"""The contract of the token log, the durable answer of a request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from shared.errors import DeadlineExceeded, HeadraceError, RequestLost
from shared.protocol import (
    AdapterRef,
    PriorityClass,
    Recording,
    Request,
    RequestState,
    RunMark,
    Stay,
    Ticket,
    TokenEvent,
)
from shared.token_log.subscription import Subscription

OVERDUE = DeadlineExceeded("the request's deadline passed before its answer was complete")
LOST = RequestLost("the server lost the request or a part of its answer; send it again")


@dataclass(frozen=True)
class RequestRecord:
    """State of a request, without its answer; times in seconds since the epoch, by the server's clock."""

    id: str
    model: str
    tenant: str
    priority: PriorityClass
    state: RequestState
    created_at: float
    started_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    deadline: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    source: str = ""  # the Kafka record that it came from
    finish: str = ""  # finish reason of its last choice, or an error code
    adapter: AdapterRef | None = None  # of its model

    @property
    def named_model(self) -> str:
        """Return the model as the client named it: its adapter, or the model."""
        return self.model if self.adapter is None else self.adapter.name

    @property
    def ticket(self) -> Ticket:
        """Return its place in the queue, if it waits."""
        return Ticket(self.id, self.model, self.priority, self.tenant)


class Unfinished(msgspec.Struct, frozen=True, gc=False):
    """An unfinished request, with the fields of its record that a search for lost ones needs."""

    id: str
    state: RequestState
    model: str
    created_at: float
    source: str


@dataclass(frozen=True)
class Lease:
    """A worker's right to write a request's log, until another acquisition raises the lease epoch.

    `history` is what the log already contains; the answer continues after it. `losses` counts the workers that were
    lost while they ran the request, since it last proved innocent. `acquired_at`, and `started_at` of the first
    worker, are in seconds since the epoch, by the server's clock. `lost_alone` is evidence against the request: if
    its last worker was lost without a token, how many workers in a row, up to that one, ran nothing else when they
    were lost; otherwise 0. `prompt` holds the prompt's token ids, if the first worker recorded them.
    """

    job_id: str
    owner: str
    epoch: int
    acquired_at: float
    history: tuple[TokenEvent, ...] = ()
    losses: int = 0
    started_at: float = 0.0
    lost_alone: int = 0
    prompt: tuple[int, ...] = ()

    @property
    def next_seq(self) -> int:
        return self.history[-1].last_seq + 1 if self.history else 0


class Append(msgspec.Struct, frozen=True, gc=False):
    """An append of `event` under `lease`, with the prompt's exact token count, which only the worker knows.

    With the event of seq 0, `prompt` may hold the prompt's token ids, which are kept for the next worker until the
    request ends. `mark` is what is new in the measurements of this run. With the terminal event, `recording` may
    hold an encoded Recording, which is kept with the answer. `plain` is true if the event is known to be not the
    first, to end nothing, and to have no mark; false only takes longer.
    """

    lease: Lease
    event: TokenEvent
    prompt_tokens: int
    prompt: tuple[int, ...] = ()
    mark: RunMark | None = None
    recording: bytes = b""
    plain: bool = False

    @property
    def ends(self) -> bool:
        """Return whether a choice or the request ends with it."""
        return self.event.terminal is not None or self.event.finish != ""


@dataclass
class Run:
    """One run of a request: a lease, and what its worker measured. Times are the server's.

    Attributes:
        acquired_at: when the worker acquired the lease.
        attempt: a later one than the run before has means that the worker before was lost.
        next_seq: seq of the next token when the run began.
        logged_at: when earlier runs last sent a mark; None if they never did.
        first_append_at: the first append of this run; None before it, and if it has the request's first token.
        marked_at: when `mark` was written.
    """

    epoch: int
    worker: str
    acquired_at: float
    attempt: int
    next_seq: int
    logged_at: float | None = None
    first_append_at: float | None = None
    mark: RunMark | None = None
    marked_at: float | None = None


@dataclass(frozen=True)
class RequestMarks:
    """A request's record, its runs in order, its stay in the queue, and when the last mark was written.

    `stay` is None while the request waits, and of one that an earlier version queued.
    """

    record: RequestRecord
    runs: tuple[Run, ...]
    stay: Stay | None = None
    logged_at: float | None = None


@dataclass(frozen=True)
class Adoption:
    """A request that came from the Kafka record `source`; with `create`, a missing log is created."""

    request: Request
    source: str
    create: bool


@dataclass(frozen=True)
class Keepsake:
    """Content that an API stores with a request; it and the answer are kept `ttl` seconds after the end."""

    content: bytes
    ttl: float


@dataclass(frozen=True)
class LogPage:
    """A bounded part of a log; `complete` if nothing follows, now or later."""

    events: tuple[TokenEvent, ...]
    complete: bool


class Live(Protocol):
    """Live messages to present subscribers: they wake readers, and may be lost."""

    def subscribe(self, name: str) -> AbstractAsyncContextManager[Subscription]:
        """Subscribe; the subscription is active when the body runs. Raises Unavailable."""

    async def close(self) -> None: ...


class TokenLog(Protocol):
    """One log per request: seq 0, 1, 2, …, then one terminal event. Times are the server's.

    Every call raises Unavailable if the store cannot be reached in time.
    """

    async def now(self) -> float:
        """Return the server's time, in seconds since the epoch."""

    async def create(
        self, request: Request, *, notify: str = "", watcher: str = "", keepsake: Keepsake | None = None
    ) -> bool:
        """Create the empty log of a request that is about to be published; return False if it exists.

        When the request ends, its id is published on the channels `notify`, which an adoption without a source may
        change, and `watcher`, if they are given.
        """

    async def adopt(self, adoptions: Sequence[Adoption], notify: str) -> list[RequestRecord | None]:
        """Have the end of each request published on the channel `notify`, in one round trip; return the records.

        With a source, `notify` is used besides the channels given to `create`, and a request that came from another
        source before stays as it is. None where there is no log.
        """

    async def forget(self, job_id: str) -> None:
        """Remove a request, its log and its keepsake, because it could not be published or is no longer needed."""

    async def acquire(
        self,
        job_ids: Sequence[str],
        owner: str,
        attempts: Sequence[int] = (),
        *,
        alone: bool = False,
        stays: Sequence[Stay | None] = (),
    ) -> list[Lease | None]:
        """Acquire the next lease epoch of each, in one round trip; None if the request has ended or is unknown.

        `attempts` and `stays` are those of the deliveries: a later attempt than before means that the previous
        worker was lost. A request past its deadline ends here with DeadlineExceeded, and never runs. `alone`:
        `owner` runs nothing else (see `note_alone`).
        """

    async def note_stay(self, job_id: str, stay: Stay) -> None:
        """Record the stay in the queue of a request that ended there."""

    async def note_alone(self, lease: Lease, alone: bool) -> bool:
        """Record whether the lease's worker runs nothing else, which is evidence if that worker is lost.

        Returns False if the worker lost the lease, or the request has ended.
        """

    async def append(self, appends: Sequence[Append]) -> list[bool]:
        """Write all in one round trip; return False for each whose lease is lost or whose request has ended.

        Repeating an append that was written is accepted and changes nothing.
        """

    async def close(
        self, job_id: str, error: HeadraceError | None = None, *, forget_queued: bool = False
    ) -> RequestRecord | None:
        """End a request from outside: write its end, fence its worker and notify it.

        The request ends as CANCELLED, or with `error` as FAILED, with the usage so far; with `forget_queued`, one
        that never ran is removed in the same step, once its readers have its end. Returns the record from before,
        unchanged if it had already ended; None if it is unknown.
        """

    async def record(self, job_id: str) -> RequestRecord | None: ...

    async def records(self, job_ids: Sequence[str]) -> list[RequestRecord | None]:
        """Return the records of many, in one round trip."""

    async def states(self, job_ids: Sequence[str]) -> list[RequestState | None]:
        """Return the states of many, in one round trip; they cost much less than records."""

    async def marks(self, job_id: str) -> RequestMarks | None:
        """Return a request's record with the marks of its runs; None if it is unknown."""

    async def keepsake(self, job_id: str) -> bytes | None:
        """Return the content stored with a request; None if there was none, or it has expired."""

    async def recording(self, job_id: str) -> Recording | None:
        """Return the recording that was kept with an answer; None without one, or once it has expired."""

    def unfinished(self) -> AsyncIterator[list[Unfinished]]:
        """Yield all unfinished requests, some at a time; those created meanwhile may be among them."""

    async def read(self, job_id: str, after: int = -1) -> LogPage:
        """Return a page of the log after seq `after`. Raises NotFound."""

    async def read_many(self, after: Mapping[str, int]) -> list[LogPage | None]:
        """Read a page of each request after its seq, in one round trip; None where there is no log."""

    def follow(self, job_id: str, after: int = -1, *, idle: float) -> AsyncGenerator[TokenEvent | None]:
        """Yield each event after `after` as it is written, up to the terminal one, without gaps or repeats.

        A reader that starts beyond the end gets the terminal event if the request ends later, and nothing if it
        has already ended.

        Yields None after each `idle` seconds of silence. Raises NotFound if the request is unknown or has expired.
        """

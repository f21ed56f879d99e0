"""The contract of the durable answer: what the front end and the workers may ask of a TokenLog."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from shared.errors import DeadlineExceeded, HeadraceError, RequestLost
from shared.protocol import PriorityClass, Request, RequestState, Ticket, TokenEvent
from shared.token_log.subscription import Subscription

OVERDUE = DeadlineExceeded("the request's time was over before its answer was whole")
LOST = RequestLost("the store lost the request or a part of its answer; send it again")


@dataclass(frozen=True)
class RequestRecord:
    """What is known of a request beside its answer; times in seconds since the epoch, by the server's clock."""

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
    source: str = ""  # the record of a topic that it came by
    finish: str = ""  # why its last choice, or all of it, ended

    @property
    def ticket(self) -> Ticket:
        """Where it waits, if it does."""
        return Ticket(self.id, self.model, self.priority, self.tenant)


@dataclass(frozen=True)
class Lease:
    """A worker's right to write a request's log, until somebody acquires it with the next epoch.

    `history` is what is in the log already: an answer is continued after it, never begun anew. `losses` counts the
    workers that were lost while they ran it, since it last proved innocent. `acquired_at`, and `started_at` of its
    first worker, are in seconds since the epoch, by the server's clock. `lost_alone` is evidence against the
    request: if its last worker was lost and gave no token, how many workers in a row, up to that one, ran nothing
    else when they were lost; otherwise 0. `prompt` has the token ids that the first worker recorded with its first
    tokens; empty where it recorded none.
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


@dataclass(frozen=True)
class Append:
    """One append: `event` under `lease`, with the prompt's exact token count, which the worker alone knows.

    With the event of seq 0, `prompt` may have the prompt's token ids. They are kept for the next worker until the
    request ends.
    """

    lease: Lease
    event: TokenEvent
    prompt_tokens: int
    prompt: tuple[int, ...] = ()


@dataclass(frozen=True)
class Adoption:
    """A request that came by the record `source`. `create`: its log is made where there is none."""

    request: Request
    source: str
    create: bool


@dataclass(frozen=True)
class Keepsake:
    """What an API keeps with a request to tell of it later; it and the answer live `ttl` seconds after the end."""

    content: bytes
    ttl: float


@dataclass(frozen=True)
class LogPage:
    """A bounded part of a log. `complete` says that nothing follows it, now or later."""

    events: tuple[TokenEvent, ...]
    complete: bool


class Live(Protocol):
    """Messages to whoever listens at that moment: a wake-up, not the truth."""

    def subscribe(self, name: str) -> AbstractAsyncContextManager[Subscription]:
        """A subscription that has begun when the body runs. Raises Unavailable."""

    async def close(self) -> None: ...


class TokenLog(Protocol):
    """One log per request: seq 0, 1, 2, …, then one terminal event. Times are the server's.

    Every call raises Unavailable when the store cannot be reached in time.
    """

    async def now(self) -> float:
        """The server's time."""

    async def create(
        self, request: Request, *, notify: str = "", watcher: str = "", keepsake: Keepsake | None = None
    ) -> bool:
        """Make the empty log of a request that is about to be published; False where there is one already.

        Whoever ends the request publishes its id on the channels `notify`, which an adoption without a source may
        change, and `watcher`, if they are given.
        """

    async def adopt(self, adoptions: Sequence[Adoption], notify: str) -> list[RequestRecord | None]:
        """Have the end of each told on the channel `notify`, in one round trip; the records as they are now.

        With a source, that is beside whoever asked for the request; and one whose record has another source came
        before, by that, and is left as it is. None where there is no log.
        """

    async def forget(self, job_id: str) -> None:
        """Remove a request, its log and its keepsake: it could not be published, or nobody wants it any more."""

    async def acquire(
        self, job_ids: Sequence[str], owner: str, attempts: Sequence[int] = (), *, alone: bool = False
    ) -> list[Lease | None]:
        """Take the next epoch of each, in one round trip. None when it has ended, or is not known any more.

        `attempts` are those of the deliveries: a later one than before means that the worker before was lost. A
        request past its deadline ends here, with DeadlineExceeded: it is never run. `alone`: `owner` runs nothing
        else, as by `note_alone`.
        """

    async def note_alone(self, lease: Lease, alone: bool) -> bool:
        """Record whether the lease's worker runs nothing else: evidence if that worker is lost.

        False: this worker lost the lease, or the request has ended.
        """

    async def append(self, appends: Sequence[Append]) -> list[bool]:
        """Write many in one round trip. False: this worker lost the lease, or the request has ended.

        Sending an append again that had been written is accepted and changes nothing.
        """

    async def close(self, job_id: str, error: HeadraceError | None = None) -> RequestRecord | None:
        """End a request from outside, whoever holds it: its end is written, its worker fenced and told.

        It ends CANCELLED, or FAILED with `error`, with the usage so far. Returns the record from before, unchanged
        if it had ended already; None if it is not known.
        """

    async def record(self, job_id: str) -> RequestRecord | None: ...

    async def records(self, job_ids: Sequence[str]) -> list[RequestRecord | None]:
        """Those of many, in one round trip."""

    async def keepsake(self, job_id: str) -> bytes | None:
        """What was kept with it; None where nothing was, or is any more."""

    def unfinished(self) -> AsyncIterator[list[RequestRecord]]:
        """All that have not ended, some at a time. One that is created meanwhile may be among them."""

    async def read(self, job_id: str, after: int = -1) -> LogPage:
        """What is in the log after seq `after`, from its beginning. Raises NotFound."""

    async def read_many(self, after: Mapping[str, int]) -> list[LogPage | None]:
        """As `read`, of each request after its seq, in one round trip. None where there is no log."""

    def follow(self, job_id: str, after: int = -1, *, idle: float) -> AsyncGenerator[TokenEvent | None]:
        """Each event after `after`, as it is written, until the terminal one: gapless, without repeats.

        Who follows from beyond the end is told of the end when it comes, and of nothing where it has come.

        Yields None after each `idle` seconds of silence. Raises NotFound when the request is not known (any more).
        """

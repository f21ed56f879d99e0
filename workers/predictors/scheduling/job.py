"""A request that waits for an execution, and the batch that it becomes a part of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from shared.errors import HeadraceError
from shared.protocol import Infer
from workers.engine.interface import EngineOutput, EngineRequest
from workers.predictors.scheduling.sequence import Sequence
from workers.predictors.tensors.inputs import CheckedInputs

Deliver = Callable[[EngineOutput], None]


@dataclass(eq=False)
class Job:
    """One request on one version of a model.

    Attributes:
        deliver: takes its outputs, from any thread.
        cancelled: its outputs are not wanted any longer.
        cache_key: of its response in the response cache; empty if it is not looked up.
        lookup_ns: duration of that lookup.
    """

    request: EngineRequest
    work: Infer
    checked: CheckedInputs
    deliver: Deliver
    arrived_ns: int
    level: int = 0
    expires_ns: int | None = None
    cancelled: bool = False
    cache_key: bytes = b""
    lookup_ns: int = 0

    @property
    def id(self) -> str:
        return self.request.id


@dataclass(frozen=True)
class Row:
    """Place in a batch: a request, or an empty slot of an instance whose slots belong to sequences."""

    job: Job | None
    sequence: Sequence | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Requests to execute together on one instance."""

    rows: tuple[Row, ...]
    instance: int = 0
    jobs: tuple[Job, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "jobs", tuple(row.job for row in self.rows if row.job is not None))

    def alone(self, job: Job) -> Batch:
        """Return the batch of one of the requests; slots of sequences keep their places."""
        kept = [row for row in self.rows if row.job is job or row.sequence is not None]
        while kept[-1].job is not job:
            kept.pop()
        return Batch(tuple(row if row.job is job else Row(None, row.sequence) for row in kept), self.instance)


class Batcher(Protocol):
    """Requests of one version that wait. Its lock is the caller's.

    Attributes:
        binds: a request may have to be executed on a certain instance, or after another one.
        expires: requests may wait too long.
        wake_at: when `take` may return a batch even if nothing changes until then; None for never.
    """

    binds: bool
    expires: bool
    wake_at: int | None

    def add(self, job: Job, now: int) -> None:
        """Queue a request. Raises HeadraceError if it is refused."""

    def remove(self, job: Job) -> bool:
        """Drop a waiting request. Return False if it does not wait."""

    def take(self, instance: int, now: int) -> Batch | None:
        """Return the requests that an idle instance executes now."""

    def finish(self, batch: Batch, now: int) -> None:
        """Note that a batch has been executed."""

    def expire(self, now: int) -> list[tuple[Job, HeadraceError]]:
        """Remove and return the requests that waited too long, each with its error."""

    def next_expiry(self) -> int | None:
        """Return when a request will have waited too long; None for never."""

    def __len__(self) -> int:
        """Return the number of requests that wait."""

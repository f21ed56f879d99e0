"""Interface of what decides which requests are executed together."""

from __future__ import annotations

from typing import Protocol

from shared.errors import HeadraceError
from workers.predictors.scheduling.job import Batch, Job, SequenceKey


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

    @property
    def drained(self) -> bool:
        """Return whether no request waits, or is still to come for a sequence that has begun."""

    def knows(self, key: SequenceKey) -> bool:
        """Return whether a sequence has begun here and may get further requests."""

    def forget(self) -> None:
        """Expect no further requests of the sequences that have begun."""

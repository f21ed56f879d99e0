"""The contract of a queue: what the front end and the workers may ask of any transport.

A transport knows messages, who waits and who holds them. It does not know answers: the epoch that fences a lost
worker is the TokenLog's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from shared.errors import HeadraceError, QueueFull, TenantQueueFull
from shared.protocol import Outlook, PriorityClass, Request, Ticket
from shared.settings import Settings

# Tokens that a class is served while all wait, against each other: urgent ones first, and nobody starves.
CLASS_WEIGHTS = {PriorityClass.INTERACTIVE: 16, PriorityClass.STANDARD: 4, PriorityClass.BATCH: 1}
SPARE_S = 0.05  # seconds for which a worker leaves requests to less loaded ones, until it takes them itself
STRANGER = 600.0  # seconds of silence after which a worker without work is struck off
LEAST_WAIT, MOST_WAIT, UNKNOWN_WAIT = 1.0, 120.0, 5.0  # seconds that a refused client is asked to wait


@dataclass(frozen=True)
class Room:
    """Sequences that a worker can take: seats that are free for each class, out of `capacity` in all.

    The classes share them: what is taken of one is taken from all.
    """

    capacity: int
    seats: Mapping[PriorityClass, int]

    @classmethod
    def all(cls, capacity: int) -> Room:
        """Of a worker that holds nothing."""
        return cls(capacity, dict.fromkeys(PriorityClass, capacity))


@dataclass(frozen=True)
class Bounds:
    """What may wait for one model, and of one tenant, in requests and in tokens as `token_estimate` has them."""

    depth: int = 1024
    tokens: int = 4_000_000
    tenant_depth: int = 1024
    tenant_tokens: int = 4_000_000

    @classmethod
    def of(cls, settings: Settings) -> Bounds:
        return cls(
            depth=settings.queue_depth,
            tokens=settings.queue_tokens,
            tenant_depth=settings.tenant_queue_depth,
            tenant_tokens=settings.tenant_queue_tokens,
        )


@dataclass(frozen=True)
class Claim:
    """A message that a worker holds."""

    job_id: str
    model: str
    priority: PriorityClass
    entry: str


@dataclass(frozen=True)
class Delivery:
    """One message handed to a worker, which holds it until it acknowledges or releases it.

    `attempt` is 1 for the first worker that gets it, one more for each that was lost with it.
    """

    request: Request
    claim: Claim
    attempt: int


class Pulled(NamedTuple):
    """What a worker was handed, and whether more waits, for room or for its turn.

    `spared`: some was left to less loaded workers. It is this worker's if they have not taken it after SPARE_S.
    """

    found: list[Delivery]
    more: bool
    spared: bool = False


@dataclass(frozen=True)
class QueueDepth:
    """Requests of a model that wait, their tokens, those that workers hold; seconds that the oldest has waited."""

    waiting: int
    waiting_tokens: int
    held: int
    oldest_age: float


class Transport(Protocol):
    """A durable queue per model; classes share it by weight, tenants of a class in turn, both counted in tokens.

    A message that is no request, left by another program, is set aside and handed to nobody.

    Every call raises Unavailable when the queue cannot be reached in time.
    """

    async def publish(self, request: Request) -> Ticket:
        """Queue `request`, unless it waits there already.

        Raises QueueFull, TenantQueueFull at a bound, with the time until there may be room.
        """

    async def publish_many(self, requests: Sequence[Request]) -> list[Ticket | HeadraceError]:
        """Each as by `publish`, in one round trip: its ticket, or what it was refused with.

        Where this raises Unavailable, some may be queued: to publish all again changes nothing for those.
        """

    async def pull(self, model: str, worker: str, room: Room) -> Pulled:
        """The waiting messages whose turn it is, as many as there is room for. Does not block.

        Workers that pull share what waits, so that an equal part of their seats is taken: a more loaded worker
        leaves requests to the others, for at most SPARE_S.
        """

    async def claim(self, model: str, worker: str, most: int) -> list[Delivery]:
        """At most `most` messages whose holder let the lease pass without a heartbeat, or released them."""

    async def renew(self, model: str, worker: str, claims: Sequence[Claim]) -> list[Claim]:
        """Heartbeat for all that `worker` holds, in one call. Returns those it no longer holds."""

    async def release(self, model: str, worker: str, claims: Sequence[Claim]) -> None:
        """Hand messages back for any worker to claim at once."""

    async def acknowledge(self, claims: Sequence[Claim]) -> None:
        """The messages, all of one model, are done. Idempotent."""

    async def discard(self, ticket: Ticket) -> None:
        """Take a request out of the queue if it still waits. Idempotent."""

    async def depth(self, model: str) -> QueueDepth: ...

    async def outlook(self, ticket: Ticket) -> Outlook | None:
        """None once it left the queue."""

    async def overdue(self, model: str, most: int) -> list[str]:
        """At most `most` ids of requests, waiting or held, whose deadline has passed, until `forget` is told."""

    async def forget(self, model: str, job_ids: Sequence[str]) -> None:
        """Their deadlines are seen to."""

    async def missing(self, model: str, job_ids: Sequence[str]) -> list[str]:
        """Those that neither wait nor are held."""

    async def lapsed(self, model: str) -> list[str]:
        """Give back the places of requests that were never written to their topic.

        Returns the ids of those that have been on their way for long.
        """

    async def lost(self, model: str) -> list[str]:
        """Some of the requests whose place in the queue another program deleted, until `forget` is called."""

    async def tidy(self, model: str) -> int:
        """Strike off workers that hold nothing and were silent for long; how many there were."""


def refusal(model: str, *, whole_model: bool, wait: float | None) -> HeadraceError:
    """What a client hears at a bound; `wait`: seconds until there should be room, if that is known."""
    retry_after = UNKNOWN_WAIT if wait is None else min(max(wait, LEAST_WAIT), MOST_WAIT)
    if whole_model:
        return QueueFull(f"the queue of {model} is full", retry_after=retry_after)
    return TenantQueueFull(f"your share of the queue of {model} is full", retry_after=retry_after)

"""The contract of a queue, which each implementation fulfils.

A queue has requests that wait and requests that workers hold. The lease epoch that fences a lost worker is the
TokenLog's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from shared.errors import (
    HeadraceError,
    QueueDraining,
    QueueFull,
    TargetUnreachable,
    TenantQueueDraining,
    TenantQueueFull,
)
from shared.protocol import Backlog, Outlook, PriorityClass, Request, Stay, Ticket
from shared.settings import Settings

# Tokens served to each class while all classes wait, in proportion: urgent ones first, and none starves.
CLASS_WEIGHTS = {PriorityClass.INTERACTIVE: 16, PriorityClass.STANDARD: 4, PriorityClass.BATCH: 1}
USUAL_TTFT_TARGET_S = 30.0  # with which a request without a target for its first token counts
TICKS_PER_S = 100_000  # of the order in a lane
SPARE_S = 0.05  # for which a worker leaves requests to less loaded ones, before it takes them itself
STEP_S = 1.0  # between notes of how far the classes of a queue got
FORGET_AFTER_S = 600.0  # of silence, for a worker that holds nothing
MIN_RETRY_S, MAX_RETRY_S, DEFAULT_RETRY_S = 1.0, 120.0, 5.0  # bounds of Retry-After, and its value while unknown
DRAIN_RETRY_S = 10.0  # Retry-After of a draining queue, which an operator opens again


@dataclass(frozen=True)
class Room:
    """Room for sequences on a worker: the seats free for each class, out of `capacity`.

    The classes share the seats: a seat taken for one class is taken from all.
    """

    capacity: int
    seats: Mapping[PriorityClass, int]

    @classmethod
    def all(cls, capacity: int) -> Room:
        """Return the room of a worker that holds nothing."""
        return cls(capacity, dict.fromkeys(PriorityClass, capacity))


@dataclass(frozen=True)
class Bounds:
    """Bounds on what waits for one model, and of one tenant, in requests and in tokens by `token_estimate`."""

    depth: int = 1024
    tokens: int = 4_000_000
    tenant_depth: int = 1024
    tenant_tokens: int = 4_000_000

    @classmethod
    def from_settings(cls, settings: Settings) -> Bounds:
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
    """A message delivered to a worker, which holds it until it acknowledges or releases it.

    `attempt` is 1 for the first worker, and one more for each worker that was lost with the message. `stay` is
    what happened while it waited; None for one that an earlier version queued.
    """

    request: Request
    claim: Claim
    attempt: int
    stay: Stay | None = None


class Wait(NamedTuple):
    """A waiting request: what waits beside it now, and its stay so far; None if an earlier version queued it."""

    now: Backlog
    stay: Stay | None


class Pulled(NamedTuple):
    """Result of a pull: the deliveries, and whether more requests wait.

    `spared`: some requests were left to less loaded workers. If these do not take them within SPARE_S, this worker
    may.
    """

    found: list[Delivery]
    more: bool
    spared: bool = False


class Lost(NamedTuple):
    """Requests whose place in the queue was deleted.

    `incomplete`: the queue's record of its requests was deleted too, so there may be others, which only the token
    log has.
    """

    job_ids: list[str]
    incomplete: bool = False


@dataclass(frozen=True)
class QueueDepth:
    """A model's waiting requests, their tokens, its held requests, and the oldest waiting one's age in seconds.

    Attributes:
        wait: estimated seconds until workers take the last waiting request, at the recent rate; None while requests
            wait and no rate is known.
        paused, paused_tokens: those of the waiting requests, and of their tokens, that no worker may take, because
            an operator paused the model or their tenants.
        open_age: age of the oldest waiting request that workers may take.
    """

    waiting: int
    waiting_tokens: int
    held: int
    oldest_age: float
    wait: float | None = None
    paused: int = 0
    paused_tokens: int = 0
    open_age: float = 0.0

    @property
    def open(self) -> int:
        """Waiting requests that workers may take."""
        return max(0, self.waiting - self.paused)


@dataclass(frozen=True)
class ClassDemand:
    """Requests of one class of a model.

    Attributes:
        waiting: those that workers may take; paused ones do not count.
        oldest_age: of the oldest of these, in seconds; 0 without one.
        rate: requests that workers recently took per second; 0 if it is unknown.
    """

    waiting: int
    held: int
    oldest_age: float
    rate: float


@dataclass(frozen=True)
class Demand:
    """Requests of a model: all together, and by class, of which a request that waits in a topic is not one yet."""

    depth: QueueDepth
    classes: Mapping[PriorityClass, ClassDemand]


class Transport(Protocol):
    """A durable queue per model; classes share it by weight, tenants of a class equally, both counted in tokens.

    The requests of a tenant in a class are served by deadline, the earliest first: `created_at` and the target for
    the first token. One without a target counts, from its arrival, as having USUAL_TTFT_TARGET_S, so it is
    overtaken only by requests that arrive within that time.

    A message that another program wrote is set aside, and never delivered.

    Every call raises Unavailable if the queue cannot be reached in time.
    """

    async def publish(self, request: Request) -> Ticket:
        """Queue `request`, unless it already waits.

        Raises QueueFull and TenantQueueFull, with the time until there may be room; TargetUnreachable with the
        expected wait, if the request wants to be refused rather than to start late; QueueDraining and
        TenantQueueDraining while an operator drains the queue.
        """

    async def publish_many(self, requests: Sequence[Request]) -> list[Ticket | HeadraceError]:
        """Publish each, in one round trip. Returns the ticket or the error of each.

        If this raises Unavailable, some may be queued; publishing all of them again is safe.
        """

    async def pull(self, model: str, worker: str, room: Room) -> Pulled:
        """Take the next waiting messages, as many as there is room for. Does not block.

        Pulling workers share what waits so that an equal fraction of their seats is taken: a more loaded worker
        leaves requests to the others, for at most SPARE_S. Those of a paused model or tenant stay.

        A request that a router aimed at another worker is left to that one, unless it has left or is silent for a
        lease, or this worker has had room, and the request has waited, for the router's patience.
        """

    async def claim(self, model: str, worker: str, room: Room) -> Pulled:
        """Take over messages whose lease expired without a heartbeat, or that were released.

        Workers share them as they share what `pull` returns. Those that are left to others are announced to them.
        """

    async def renew(self, model: str, worker: str, claims: Sequence[Claim]) -> list[Claim]:
        """Send the heartbeat for all messages that `worker` holds. Returns those that it no longer holds."""

    async def release(self, model: str, worker: str, claims: Sequence[Claim], *, lost: bool = False) -> None:
        """Give messages back, for any worker to claim at once. `lost`: the worker counts as lost with them."""

    async def leave(self, model: str, worker: str) -> None:
        """Hand `worker` no requests until it pulls again; those aimed at it go to all workers at once."""

    async def acknowledge(self, claims: Sequence[Claim]) -> None:
        """Remove finished messages, all of one model. Idempotent."""

    async def discard(self, ticket: Ticket) -> Stay | None:
        """Remove a request if it still waits, and return its stay. Idempotent."""

    async def depth(self, model: str) -> QueueDepth: ...

    async def demand(self, model: str) -> Demand:
        """Return what waits and is held, with the depth, by one look at the queue."""

    async def outlook(self, ticket: Ticket) -> Outlook | None:
        """Return the place of a waiting request; None once it has left the queue."""

    async def wait_of(self, ticket: Ticket) -> Wait | None:
        """Return how a waiting request waits; None if it is not in a lane."""

    async def overdue(self, model: str, most: int) -> list[str]:
        """Return at most `most` ids of requests, waiting or held, past their deadline; each until `forget`."""

    async def forget(self, model: str, job_ids: Sequence[str]) -> None:
        """Stop reporting requests as overdue or lost."""

    async def missing(self, model: str, job_ids: Sequence[str]) -> list[str]:
        """Return the ids that neither wait nor are held."""

    async def lapsed(self, model: str) -> list[str]:
        """Give back the places of requests that were never written to their topic.

        Returns the ids of requests that were written but have not arrived for long.
        """

    async def lost(self, model: str) -> Lost:
        """Return some of the requests whose place another program deleted; each until `forget`."""

    async def tidy(self, model: str) -> int:
        """Forget workers that hold nothing and were silent for FORGET_AFTER_S. Returns how many."""


def without_stay(request: Request) -> Request:
    """Return a request as it was before it was queued."""
    return request if request.stay is None else msgspec.structs.replace(request, stay=None)


def drain_refusal(model: str, *, whole_model: bool) -> HeadraceError:
    """Return the error for a new request to a draining queue."""
    if whole_model:
        return QueueDraining(f"the queue of {model} takes no new requests for now", retry_after=DRAIN_RETRY_S)
    return TenantQueueDraining(
        f"the queue of {model} takes no new requests of yours for now", retry_after=DRAIN_RETRY_S
    )


def refusal(model: str, *, whole_model: bool, wait: float | None) -> HeadraceError:
    """Return the error for a full queue; `wait`: seconds until there should be room, if known."""
    retry_after = DEFAULT_RETRY_S if wait is None else min(max(wait, MIN_RETRY_S), MAX_RETRY_S)
    if whole_model:
        return QueueFull(f"the queue of {model} is full", retry_after=retry_after)
    return TenantQueueFull(f"your share of the queue of {model} is full", retry_after=retry_after)


def lane_order(request: Request) -> int | None:
    """Return the order of a request with a target in its lane, in ticks; None for its arrival."""
    if request.ttft_target is None:
        return None
    return int((request.created_at + request.ttft_target - USUAL_TTFT_TARGET_S) * TICKS_PER_S)


def due_at(request: Request) -> float:
    """Return the time at which the first token of a request is due; without a target, the usual one counts."""
    return request.created_at + (USUAL_TTFT_TARGET_S if request.ttft_target is None else request.ttft_target)


def latest_start(request: Request) -> float | None:
    """Return the time by which a request must be expected to start; None if it may start late."""
    if request.ttft_target is None or not request.refuse_late:
        return None
    return request.created_at + request.ttft_target


def late(request: Request, by: float) -> TargetUnreachable:
    """Return the error for a request that is expected to start `by` so many seconds after its target."""
    target = 0.0 if request.ttft_target is None else request.ttft_target
    wait = math.ceil((target + by) * 1000) / 1000
    return TargetUnreachable(
        f"the first token is expected after {wait:.3f} s, later than the target of {target:g} s",
        estimated_wait=wait,
        retry_after=max(wait, MIN_RETRY_S),
    )

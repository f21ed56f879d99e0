"""The contract of a queue: what the front end and the workers may ask of any transport.

A transport knows messages and who holds them. It does not know answers: the epoch that fences a lost worker is the
TokenLog's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.protocol import PriorityClass, Request


@dataclass(frozen=True)
class Ticket:
    """Where a published request waits: enough to find, discard or acknowledge it.

    `ordinal` counts the requests ever published to the same model and class, this one included.
    """

    model: str
    priority: PriorityClass
    entry: str
    ordinal: int = 0


@dataclass(frozen=True)
class Delivery:
    """One message handed to a worker, which holds it until it acknowledges or releases it.

    `attempt` is 1 for the first worker that gets it, one more for each that was lost with it.
    """

    request: Request
    ticket: Ticket
    attempt: int


@dataclass(frozen=True)
class Undecodable:
    """A message that is no request: kept out of the engine, and out of the queue."""

    ticket: Ticket
    reason: str


@dataclass(frozen=True)
class QueueDepth:
    """Requests of a model that wait and that workers hold; the age of the oldest waiting one, in seconds."""

    waiting: int
    held: int
    oldest_age: float


class Transport(Protocol):
    """A durable queue per model and priority class.

    Every call raises Unavailable when the queue cannot be reached in time.
    """

    async def publish(self, request: Request) -> Ticket:
        """Queue `request`. Raises QueueFull at the model's bound."""

    async def pull(self, model: str, worker: str, room: int) -> list[Delivery | Undecodable]:
        """At most `room` waiting messages, most urgent first; none when nothing waits. Does not block."""

    async def claim(self, model: str, worker: str, room: int) -> list[Delivery | Undecodable]:
        """At most `room` messages whose holder let the lease pass without a heartbeat, or released them."""

    async def renew(self, model: str, worker: str, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Heartbeat for all that `worker` holds, in one call. Returns those it no longer holds."""

    async def release(self, model: str, worker: str, tickets: Sequence[Ticket]) -> None:
        """Hand messages back for any worker to claim at once."""

    async def acknowledge(self, ticket: Ticket) -> None:
        """The message is done, or was cancelled while it waited. Idempotent."""

    async def depth(self, model: str) -> QueueDepth: ...

    async def position(self, ticket: Ticket) -> int:
        """How many requests of its class are still before it, itself included; 0 once it was pulled."""

"""Types of a timeline, as the API returns it. Times are in seconds since the epoch, by the server's clock."""

from __future__ import annotations

from typing import Literal

import msgspec

Cause = Literal[
    "intake", "queue", "pause", "preparation", "engine", "prefill", "decode", "preemption", "takeover", "compute"
]
PhaseName = Literal[
    "intake", "queued", "paused", "preparing", "waiting", "prefill", "decode", "compute", "lost", "resuming"
]
EventName = Literal[
    "admitted",
    "queued",
    "paused",
    "resumed",
    "pulled",
    "first_token",
    "preempted",
    "worker_lost",
    "handed_over",
    "taken_over",
    "ended",
]


class Phase(msgspec.Struct):
    """A part of the request's time; the phases follow each other without gaps.

    `intake`: from admission until the queue has it. `paused`: it waited in a paused queue. `lost`: from the last
    token of a worker that did not finish, or from its lease if it produced none, until the next worker. `resuming`:
    from there until the next token. `waiting`: in the worker, for a seat or cache blocks.
    `preempted` is the part of it for which a choice was preempted.
    """

    name: PhaseName
    start: float
    end: float
    worker: str | None = None
    preempted: float = 0.0

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Event(msgspec.Struct, omit_defaults=True):
    """Something that happened to the request.

    Attributes:
        at: for preemptions, when the request last resumed; for a lost worker, its last sign of life in the log.
        position: place in its class of the queue.
        tokens: tokens of the answer so far.
        count, seconds: of preemptions.
    """

    name: EventName
    at: float
    worker: str | None = None
    position: int | None = None
    tokens: int | None = None
    count: int | None = None
    seconds: float | None = None
    finish: str | None = None


class Waiting(msgspec.Struct):
    """Waiting requests of each class."""

    interactive: int
    standard: int
    batch: int


class Position(msgspec.Struct):
    """Place in its class of the queue, from 1."""

    at: float
    position: int


class QueueSnapshot(msgspec.Struct):
    """Place in the queue, and the other work there: counts alone, which name no other tenant.

    Attributes:
        position: place in its class, from 1; an estimate if several tenants take turns.
        requests, tokens: all others that waited; tokens by the estimate of admission.
        own_requests, own_tokens: those of them that are of the caller's tenant.
        tenants: tenants that take turns in the class, the caller's included.
        share: part of the model's work that the tenant gets in this class while all of this waits.
    """

    at: float
    position: int
    requests: Waiting
    tokens: int
    own_requests: int
    own_tokens: int
    tenants: int
    share: float


class Totals(msgspec.Struct):
    """Seconds by cause; their sum is the request's time."""

    intake: float = 0.0
    queue: float = 0.0
    pause: float = 0.0
    preparation: float = 0.0
    engine: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    preemption: float = 0.0
    takeover: float = 0.0
    compute: float = 0.0

    def main(self) -> Cause:
        """Return the cause with the most seconds; the first of several."""
        causes: tuple[Cause, ...] = (
            "pause",
            "queue",
            "intake",
            "takeover",
            "preemption",
            "engine",
            "preparation",
            "prefill",
            "compute",
            "decode",
        )
        return max(causes, key=lambda cause: getattr(self, cause))


class Timeline(msgspec.Struct, kw_only=True):
    """Timeline of a request.

    Attributes:
        until: the end of the request; while it is unfinished, the server's time at the reply.
        summary: the main cause in one sentence.
        queue: what else waited when it was queued, if anything did, and now, if it waits.
        positions: its positions over time, the first an estimate if several tenants take turns.
        cached_tokens: tokens of the prompt that were found in the prefix cache.
        tokens_per_s: rate of decoding, without preemptions and changes of worker; null before there is one.
    """

    id: str
    object: Literal["timeline"] = "timeline"
    model: str
    priority: Literal["interactive", "standard", "batch"]
    state: Literal["queued", "running", "completed", "failed", "cancelled"]
    created_at: float
    until: float
    seconds: float
    cause: Cause
    summary: str
    totals: Totals
    queue: list[QueueSnapshot]
    positions: list[Position]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tokens_per_s: float | None
    preemptions: int
    workers_lost: int
    phases: list[Phase]
    events: list[Event]

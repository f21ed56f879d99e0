"""Where a queued request waits, and what it may expect."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol.request import PriorityClass


@dataclass(frozen=True)
class Ticket:
    """Where a published request waits."""

    job_id: str
    model: str
    priority: PriorityClass
    tenant: str


@dataclass(frozen=True)
class Outlook:
    """What a waiting request may expect: its place in its class, from 1, and seconds by the rate of late.

    Tenants take turns, so that the place is an estimate where several wait. `wait` is None while no rate is known.
    """

    position: int
    wait: float | None

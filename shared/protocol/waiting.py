"""Position of a queued request, and its expected wait."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol.request import PriorityClass


@dataclass(frozen=True)
class Ticket:
    """Queue of a published request."""

    job_id: str
    model: str
    priority: PriorityClass
    tenant: str


@dataclass(frozen=True)
class Outlook:
    """Estimate for a waiting request: its position in its class, from 1, and its wait at the recent rate.

    Tenants take turns, so the position is an estimate if several wait. `wait` is in seconds, and None while no rate
    is known.
    """

    position: int
    wait: float | None

"""Calls on a queue, and what they return in short."""

from __future__ import annotations

from collections.abc import Sequence

from shared.queue.interface import Delivery, Room, Transport
from tests.support.fakes import MODEL


async def pull(transport: Transport, room: int, worker: str = "a") -> list[Delivery]:
    found = (await transport.pull(MODEL, worker, Room.all(room))).found
    assert all(isinstance(item, Delivery) for item in found)
    return found


def ids(found: Sequence[Delivery]) -> list[str]:
    return [item.claim.job_id for item in found]


async def counts(transport: Transport) -> tuple[int, int]:
    depth = await transport.depth(MODEL)
    return depth.waiting, depth.held

"""Waiting and held requests by class, in every queue."""

from __future__ import annotations

from shared.protocol import PriorityClass
from shared.queue.interface import ClassDemand, Transport
from tests.support.fakes import MODEL, make_request
from tests.support.queue_calls import pull

INTERACTIVE, STANDARD, BATCH = PriorityClass


async def test_demand_counts_each_class(transport: Transport) -> None:
    assert await transport.demand(MODEL) == dict.fromkeys(PriorityClass, ClassDemand(0, 0, 0.0, 0.0))
    for priority in (INTERACTIVE, STANDARD, STANDARD):
        await transport.publish(make_request(priority=priority))
    [_] = await pull(transport, 1)
    found = await transport.demand(MODEL)
    assert [(each.waiting, each.held) for each in found.values()] == [(0, 1), (2, 0), (0, 0)]
    assert found[INTERACTIVE].rate > 0
    assert found[STANDARD].rate == 0
    assert found[STANDARD].oldest_age >= 0

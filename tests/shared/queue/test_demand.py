"""Waiting and held requests by class, in every queue."""

from __future__ import annotations

from dataclasses import replace

from shared.protocol import PriorityClass
from shared.queue.interface import ClassDemand, QueueDepth, Transport
from tests.support.fakes import MODEL, make_request
from tests.support.queue_calls import pull

INTERACTIVE, STANDARD, BATCH = PriorityClass


async def test_demand_counts_each_class(transport: Transport) -> None:
    empty = await transport.demand(MODEL)
    assert empty.classes == dict.fromkeys(PriorityClass, ClassDemand(0, 0, 0.0, 0.0))
    assert replace(empty.depth, oldest_age=0.0) == QueueDepth(0, 0, 0, 0.0, 0.0)
    for priority in (INTERACTIVE, STANDARD, STANDARD):
        await transport.publish(make_request(priority=priority))
    [_] = await pull(transport, 1)
    demand = await transport.demand(MODEL)
    found = demand.classes
    assert [(each.waiting, each.held) for each in found.values()] == [(0, 1), (2, 0), (0, 0)]
    assert found[INTERACTIVE].rate > 0
    assert found[STANDARD].rate == 0
    assert found[STANDARD].oldest_age >= 0
    assert (demand.depth.waiting, demand.depth.held, demand.depth.wait) == (
        2,
        1,
        None,
    )  # no standard one was pulled
    assert demand.depth.waiting_tokens > 0

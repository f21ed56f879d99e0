"""Waiting and held requests by class, in every queue."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import cast

import pytest

from shared.protocol import PriorityClass
from shared.queue.interface import Bounds, ClassDemand, QueueDepth, Transport
from shared.queue.memory import MemoryTransport
from shared.queue.survey import Gate
from shared.redis import keys
from shared.settings import Settings
from shared.token_log.memory import MemoryLive
from tests.support.backends import opened
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
    assert (demand.depth.waiting, demand.depth.held) == (2, 1)
    assert demand.depth.wait is None  # no standard one was pulled
    assert demand.depth.waiting_tokens > 0


@pytest.mark.parametrize("kind", ["redis", "memory"])
async def test_what_is_paused_is_no_demand(kind: str, settings: Settings) -> None:
    backend = await opened(kind, settings)
    requests = [make_request(tenant=tenant, priority=BATCH) for tenant in ("a", "b", "b")]
    for request in [*requests, make_request(tenant="b")]:
        await backend.transport.publish(request)

    async def found() -> tuple[object, ...]:
        demand = await backend.transport.demand(MODEL)
        assert demand.depth.waiting == 4
        assert (demand.depth.paused_tokens == demand.depth.waiting_tokens) == (demand.depth.open == 0)
        waiting = [each.waiting for each in demand.classes.values()]
        return waiting, demand.depth.paused, demand.depth.open_age > 0, demand.depth.oldest_age > 0

    ages = [False] * 2
    while not all(ages):  # ages have milliseconds
        depth = await backend.transport.depth(MODEL)
        ages = [depth.open_age > 0, depth.oldest_age > 0]
    for model, tenant, expected in (
        ("open", "open", ([0, 1, 3], 0, True, True)),
        ("open", "paused", ([0, 0, 1], 3, True, True)),
        ("paused", "paused", ([0, 0, 0], 4, False, True)),
        ("paused", "open", ([0, 0, 0], 4, False, True)),
        ("draining", "draining", ([0, 1, 3], 0, True, True)),
    ):
        await backend.queues.set_gate(MODEL, cast("Gate", model))
        await backend.queues.set_gate(MODEL, cast("Gate", tenant), "b")
        assert await found() == expected
    await backend.close()


@pytest.mark.parametrize("kind", ["redis", "memory"])
async def test_a_rate_is_forgotten_after_a_while_without_pulls(kind: str, settings: Settings) -> None:
    """Else it would fade towards 0, and the estimates towards the age of the universe."""
    backend, late = await opened(kind, settings), 0.0
    if kind == "memory":
        live = MemoryLive()
        transport: Transport = MemoryTransport(live, bounds=Bounds(), lease=60, clock=lambda: time.time() + late)
    else:
        transport = backend.transport
    await transport.publish(make_request())
    await pull(transport, 1)
    ticket = await transport.publish(make_request())
    assert (await transport.depth(MODEL)).wait is not None
    late = 3600.0
    if kind == "redis":
        await backend.redis.hset(keys.transport(MODEL)[0], "at", time.time() - late)
    assert (await transport.depth(MODEL)).wait is None
    assert {each.rate for each in (await transport.demand(MODEL)).classes.values()} == {0.0}
    outlook = await transport.outlook(ticket)
    assert outlook is not None
    assert outlook.wait is None
    await backend.close()

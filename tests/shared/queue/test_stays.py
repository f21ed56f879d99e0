"""Stays of requests in a queue: what waited beside them, their positions over time, and pauses."""

from __future__ import annotations

import time

import pytest

from shared.backend import Backend
from shared.protocol import Backlog, PriorityClass, Stay
from shared.queue import interface
from shared.queue.interface import USUAL_TTFT_TARGET_S, Transport
from shared.queue.memory_history import MAX_STEPS
from shared.redis import keys
from tests.support.fakes import MODEL, lapse, make_request
from tests.support.queue_calls import pull

INTERACTIVE = PriorityClass.INTERACTIVE


def known(stay: Stay | None) -> Stay:
    assert stay is not None
    return stay


async def test_a_stay_has_what_else_waited(transport: Transport) -> None:
    """Given requests of two classes and tenants, each later one is behind the earlier ones."""
    requests = [
        make_request(tenant="a"),
        make_request(tenant="b"),
        make_request(tenant="a", priority=INTERACTIVE),
        make_request(tenant="a"),
    ]
    began = time.time()
    tickets = [await transport.publish(request) for request in requests]
    expected = [
        None,
        Backlog(2, (0, 1, 0), 0, 2, 9, 0),
        Backlog(1, (0, 2, 0), 1, 1, 18, 9),
        Backlog(3, (1, 2, 0), 2, 2, 27, 18),
    ]
    waits = [await transport.wait_of(ticket) for ticket in tickets]
    assert [wait and known(wait.stay).backlog for wait in waits] == expected
    assert [wait and wait.now.position for wait in waits] == [2, 2, 1, 3], "tenants take turns"
    assert waits[0] is not None and waits[0].now == Backlog(2, (1, 2, 0), 2, 2, 27, 18)
    deliveries = {each.request.id: each for each in await pull(transport, 4)}
    stays = [known(deliveries[request.id].stay) for request in requests]
    assert [stay.backlog for stay in stays] == expected
    assert all(began - 1 <= stay.entered <= time.time() + 1 for stay in stays)
    assert [deliveries[request.id].request for request in requests] == requests
    assert [await transport.wait_of(ticket) for ticket in tickets] == [None] * 4


async def test_a_backlog_counts_those_with_an_earlier_deadline(transport: Transport) -> None:
    """Given three waiting requests, one whose target is earlier than two of them enters behind the third."""
    now = time.time()
    for ago in (90, 30, 0):  # as if they had arrived so long ago
        await transport.publish(make_request(created_at=now - ago, ttft_target=USUAL_TTFT_TARGET_S))
    ticket = await transport.publish(make_request(created_at=now - 60, ttft_target=USUAL_TTFT_TARGET_S))
    wait = await transport.wait_of(ticket)
    assert wait is not None
    assert (known(wait.stay).backlog, wait.now) == (Backlog(2, (0, 3, 0), 3, 1, 27, 27),) * 2


async def test_positions_are_known_over_time(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pull notes how many were taken before; the last shows each later one's position at these times."""
    monkeypatch.setattr(interface, "STEP_S", 0.0)
    first, *_, last = [await transport.publish(make_request()) for _ in range(4)]
    [early] = await pull(transport, 1)
    assert early.request.id == first.job_id
    assert [position for _, position in known(early.stay).positions] == [1]
    await pull(transport, 1)
    await transport.publish(make_request(priority=INTERACTIVE))
    waiting = await transport.wait_of(last)
    assert waiting is not None
    assert [position for _, position in known(waiting.stay).positions] == [4, 3]
    assert len(await pull(transport, 3)) == 3
    await transport.publish(make_request())
    [late] = await pull(transport, 1)
    assert [position for _, position in known(late.stay).positions] == [1]


async def test_a_lost_workers_request_keeps_its_stay(
    backend: Backend, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interface, "STEP_S", 0.0)
    await transport.publish(make_request())
    [before] = await pull(transport, 1)
    if backend.server is None:
        await transport.release(MODEL, "a", [before.claim])
    else:
        await lapse(backend)
    [after] = (await transport.claim(MODEL, "b", interface.Room.all(1))).found
    assert after.stay == before.stay and known(after.stay).positions


async def test_positions_are_bounded(
    backend: Backend, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given many notes, a stay shows few of them."""
    monkeypatch.setattr(interface, "STEP_S", 0.0)
    await backend.queues.set_gate(MODEL, "paused", "slow")
    waiting = await transport.publish(make_request(tenant="slow"))
    for _ in range(100):
        await transport.publish(make_request())
        await pull(transport, 1)
    found = await transport.wait_of(waiting)
    assert found is not None
    times = [at for at, _ in known(found.stay).positions]
    assert 2 < len(times) <= 12
    assert times == sorted(times)
    if backend.server is not None:
        assert len((await backend.redis.hget(keys.counters(MODEL), "steps")).split()) <= MAX_STEPS


async def test_pauses_of_model_and_tenant_are_known(backend: Backend, transport: Transport) -> None:
    await backend.queues.set_gate(MODEL, "paused", "default")
    await backend.queues.set_gate(MODEL, "open", "default")  # before the requests
    mine, other = [await transport.publish(make_request(tenant=name)) for name in ("default", "other")]
    await backend.queues.set_gate(MODEL, "paused")
    await backend.queues.set_gate(MODEL, "paused")  # no change
    found = await transport.wait_of(other)
    assert found is not None
    [(start, end)] = known(found.stay).pauses
    assert (start >= known(found.stay).entered, end) == (True, None)
    await backend.queues.set_gate(MODEL, "draining")
    await backend.queues.set_gate(MODEL, "paused", "default")
    await backend.queues.set_gate(MODEL, "open", "default")
    stays = {each.claim.job_id: known(each.stay) for each in await pull(transport, 2)}
    assert [len(stays[ticket.job_id].pauses) for ticket in (mine, other)] == [2, 1]
    [(start, end)] = stays[other.job_id].pauses
    assert end is not None and stays[other.job_id].entered <= start <= end


async def test_a_discarded_request_returns_its_stay(backend: Backend, transport: Transport) -> None:
    ticket = await transport.publish(make_request())
    await backend.queues.set_gate(MODEL, "paused")
    stay = known(await transport.discard(ticket))
    assert [end for _, end in stay.pauses] == [None]
    assert await transport.discard(ticket) is None


async def test_foreign_notes_of_the_history_do_no_harm(on_redis: Backend) -> None:
    transport = on_redis.transport
    ticket = await transport.publish(make_request())
    for steps, pauses in ((b"x", b"{"), (b"9:9:9:9 1e9:\xff", b'[1,[],["a",2,3],[1,1e999,""]]'), (b"\xff", b"5")):
        noted = {"steps": steps, "pauses": pauses, "stepped": 1e14, "resumed": 1e14, "taken:2": "nan"}
        await on_redis.redis.hset(keys.counters(MODEL), mapping=noted)
        await on_redis.queues.set_gate(MODEL, "paused")
        assert await transport.wait_of(ticket) is not None
        await on_redis.queues.set_gate(MODEL, "open")
        await on_redis.redis.hset(keys.counters(MODEL), mapping=noted)
        [delivery] = await pull(transport, 1)
        assert delivery.request.id == ticket.job_id
        ticket = await transport.publish(make_request())

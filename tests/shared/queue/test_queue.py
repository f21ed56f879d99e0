"""The contract of a Transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from shared.backend import Backend
from shared.errors import QueueFull, TenantQueueFull
from shared.protocol import PriorityClass
from shared.queue.interface import Delivery, Room, Transport
from shared.queue.memory import MemoryTransport
from shared.settings import Settings
from shared.validation.token_estimate import token_estimate
from tests.support.fakes import MODEL, lapse, make_request, publish_garbage
from tests.support.queue_calls import counts, ids, pull
from tests.support.waiting import LIMIT_S

INTERACTIVE, STANDARD, BATCH = PriorityClass


async def test_a_message_is_delivered_once_and_removed_by_acknowledge(transport: Transport) -> None:
    request = make_request()
    await transport.publish(request)
    assert (await transport.depth(MODEL)).waiting_tokens == token_estimate(request)

    [delivery] = await pull(transport, 10)
    assert (delivery.request, delivery.attempt) == (request, 1)
    assert await pull(transport, 10, "b") == []
    assert await counts(transport) == (0, 1)

    await transport.acknowledge([delivery.claim])
    await transport.acknowledge([delivery.claim])  # idempotent
    assert await counts(transport) == (0, 0)


async def test_publishing_a_waiting_request_again_changes_nothing(transport: Transport) -> None:
    request = make_request()
    assert await transport.publish(request) == await transport.publish(request)
    assert await counts(transport) == (1, 0)
    assert ids(await pull(transport, 10)) == [request.id]


async def test_the_queue_is_bounded_over_all_classes(transport: Transport) -> None:
    tickets = [await transport.publish(make_request(priority=priority)) for priority in [*PriorityClass, BATCH]]

    with pytest.raises(QueueFull) as refused:
        await transport.publish(make_request())
    assert refused.value.retry_after

    await transport.discard(tickets[0])
    await transport.discard(tickets[0])  # idempotent
    await transport.publish(make_request())
    await pull(transport, 1)
    await transport.publish(make_request())


async def test_requests_published_together_get_their_own_replies(transport: Transport) -> None:
    """With room for 4 of 6 requests, 4 get tickets and 2 are refused; repeating the call changes nothing."""
    requests = [make_request() for _ in range(6)]
    places = await transport.publish_many(requests)
    assert [getattr(place, "job_id", None) for place in places] == [each.id for each in requests[:4]] + [None] * 2
    assert all(isinstance(place, QueueFull) and place.retry_after for place in places[4:])
    assert await transport.publish_many(requests[:4]) == places[:4]
    assert ids(await pull(transport, 10)) == [each.id for each in requests[:4]]
    assert await transport.publish_many([]) == []


@pytest.mark.parametrize("kind", ["redis", "memory"])
async def test_a_tenant_has_its_own_bounds(
    kind: str, settings: Settings, backend_of: Callable[..., Backend]
) -> None:
    bounds = {"queue_depth": 10, "tenant_queue_depth": 2, "tenant_queue_tokens": 1000}
    backend = await backend_of(kind, settings.model_copy(update=bounds))
    publish = backend.transport.publish
    await publish(make_request("", max_tokens=5000, tenant="a"))  # larger than the bound, but nothing waits
    with pytest.raises(TenantQueueFull):
        await publish(make_request("", max_tokens=1, tenant="a"))
    for _ in range(2):
        await publish(make_request("", max_tokens=400, tenant="b"))
    with pytest.raises(TenantQueueFull) as refused:
        await publish(make_request("", max_tokens=1, tenant="b"))
    assert refused.value.retry_after
    await publish(make_request(tenant="c"))


async def test_a_refusal_has_the_time_until_there_is_room(transport: Transport) -> None:
    """With 4 of 4 places taken and one drained in the last second, a tenth of them takes 1 s."""
    await transport.publish(make_request())
    await pull(transport, 1)
    tickets = [await transport.publish(make_request()) for _ in range(4)]
    with pytest.raises(QueueFull) as refused:
        await transport.publish(make_request())
    assert refused.value.retry_after == pytest.approx(1, abs=0.5)
    outlook = await transport.outlook(tickets[3])
    assert outlook is not None
    assert outlook.position == 4
    assert outlook.wait == pytest.approx(4, rel=0.5)


async def test_position_counts_down_as_others_are_pulled(transport: Transport) -> None:
    tickets = [await transport.publish(make_request()) for _ in range(3)]
    assert [(await transport.outlook(ticket)).position for ticket in tickets] == [1, 2, 3]
    await pull(transport, 2)
    assert await transport.outlook(tickets[0]) is None
    assert (await transport.outlook(tickets[2])).position == 1


async def test_position_counts_the_turns_of_other_tenants(transport: Transport) -> None:
    for _ in range(3):
        await transport.publish(make_request(tenant="a"))
    ticket = await transport.publish(make_request(tenant="b"))
    assert (await transport.outlook(ticket)).position == 2


async def test_a_request_that_neither_waits_nor_is_held_is_missing(transport: Transport) -> None:
    first, second, done, unknown = (make_request() for _ in range(4))
    for request in (done, first, second):
        await transport.publish(request)
    [finished, _] = (await transport.pull(MODEL, "a", Room.all(2))).found
    await transport.acknowledge([finished.claim])
    asked = [first.id, second.id, done.id, unknown.id]
    assert await transport.missing(MODEL, asked) == [done.id, unknown.id]


async def test_depth_has_the_age_of_the_oldest_waiting_request(transport: Transport) -> None:
    await transport.publish(make_request())
    await transport.publish(make_request())
    await pull(transport, 1)

    depth = await transport.depth(MODEL)

    assert (depth.waiting, depth.held) == (1, 1)
    assert 0 <= depth.oldest_age < LIMIT_S


async def test_depth_estimates_the_wait_of_the_last_request(transport: Transport) -> None:
    assert (await transport.depth(MODEL)).wait == 0
    for _ in range(3):
        await transport.publish(make_request())
    assert (await transport.depth(MODEL)).wait is None  # no rate is known yet
    await pull(transport, 1)
    wait = (await transport.depth(MODEL)).wait
    assert wait is not None
    assert wait > 0


async def test_a_message_is_claimed_once_its_worker_is_silent(
    backend: Backend, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await transport.publish(make_request())
    silent, beating = (item.claim for item in await pull(transport, 2))

    assert (await transport.claim(MODEL, "b", Room.all(10))).found == []
    if isinstance(transport, MemoryTransport):
        now = time.time() + 2 * LIMIT_S
        monkeypatch.setattr(transport, "_clock", lambda: now)
    else:
        await lapse(backend)
    assert await transport.renew(MODEL, "a", [beating]) == []
    found, *_ = await transport.claim(MODEL, "b", Room.all(10))

    assert [item.claim for item in found] == [silent]
    assert isinstance(found[0], Delivery)
    assert found[0].attempt == 2
    assert await transport.renew(MODEL, "a", [silent, beating]) == [silent]


async def test_a_released_message_is_claimable_without_a_lost_worker(
    transport: Transport,
) -> None:
    await transport.publish(make_request())
    [delivery] = await pull(transport, 1)

    await transport.release(MODEL, "b", [delivery.claim])  # not b's to release
    assert (await transport.claim(MODEL, "b", Room.all(1))).found == []
    await transport.release(MODEL, "a", [delivery.claim])

    [found] = (await transport.claim(MODEL, "b", Room.all(1))).found
    assert isinstance(found, Delivery)
    assert found.attempt == 1


async def test_a_message_that_is_released_as_lost_counts_a_lost_worker(transport: Transport) -> None:
    await transport.publish(make_request())
    [delivery] = await pull(transport, 1)
    await transport.release(MODEL, "a", [delivery.claim], lost=True)
    [found] = (await transport.claim(MODEL, "b", Room.all(1))).found
    assert found.attempt == 2


async def test_waiting_and_held_requests_past_deadlines_are_reported(transport: Transport) -> None:
    held = make_request(deadline=1.0)
    await transport.publish(held)
    await pull(transport, 1)
    waiting, done, patient = make_request(deadline=2.0), make_request(deadline=3.0), make_request(deadline=1e12)
    for request in (waiting, patient):
        await transport.publish(request)
    await transport.discard(await transport.publish(done))

    assert sorted(await transport.overdue(MODEL, 10)) == sorted([held.id, waiting.id])
    assert len(await transport.overdue(MODEL, 1)) == 1
    await transport.forget(MODEL, [held.id, waiting.id])
    assert await transport.overdue(MODEL, 10) == []


async def test_a_foreign_message_is_set_aside(on_redis: Backend) -> None:
    await publish_garbage(on_redis, b'{"id": 5}')
    assert (await on_redis.transport.pull(MODEL, "a", Room.all(1))).found == []
    assert await counts(on_redis.transport) == (0, 0)
    assert on_redis.server is not None
    assert on_redis.server.foreign.found == {"queue": 1}


async def test_the_script_is_loaded_again_after_a_restart(on_redis: Backend) -> None:
    await on_redis.transport.publish(make_request())
    await on_redis.redis.script_flush()
    assert len(await pull(on_redis.transport, 1)) == 1


async def test_silent_workers_that_hold_nothing_are_forgotten(
    on_redis: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.queue.redis_streams.FORGET_AFTER_S", 0.0)
    for worker in ("gone", "holds"):
        await on_redis.transport.publish(make_request())
        [delivery] = await pull(on_redis.transport, 1, worker)
        if worker == "gone":
            await on_redis.transport.acknowledge([delivery.claim])
    async with asyncio.timeout(LIMIT_S):
        while not (struck := await on_redis.transport.tidy(MODEL)):
            pass
    assert struck == 1
    assert await on_redis.transport.tidy(MODEL) == 0


async def test_no_keys_remain_of_tenants_without_requests(on_redis: Backend) -> None:
    before = {*await on_redis.redis.keys("*")}
    for i in range(4):
        await on_redis.transport.publish(make_request(tenant=f"t{i}"))
    for item in await pull(on_redis.transport, 10):
        await on_redis.transport.acknowledge([item.claim])
    left = {*await on_redis.redis.keys("*")} - before
    counters = await on_redis.redis.hgetall("hr:{q:scripted}:counters")
    served = {name for name in left if name.startswith(b"hr:{q:scripted}:lane:served:")}
    assert all([await on_redis.redis.pttl(name) > 0 for name in served])
    kept = (b"counters", b"pullers", b"recent", b"standard")
    assert sorted(left - served) == [b"hr:{q:scripted}:" + name for name in kept]
    assert not [name for name in counters if b"t0" in name]

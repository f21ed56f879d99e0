"""The contract of a Transport, on a real server."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shared import keys
from shared.backend import Backend
from shared.config import Settings
from shared.errors import QueueFull
from shared.protocol import PriorityClass
from shared.transports.base import Delivery, Ticket, Undecodable
from shared.transports.redis_streams import RedisStreams
from tests.fakes import MODEL, make_request

LEASE = 0.2


@pytest.fixture
def transport(backend: Backend) -> RedisStreams:
    return RedisStreams(backend.server, depth=4, lease=LEASE)


async def test_a_message_is_handed_out_once_and_is_gone_once_acknowledged(transport: RedisStreams) -> None:
    request = make_request()
    ticket = await transport.publish(request)

    [delivery] = await transport.pull(MODEL, "a", 10)
    assert isinstance(delivery, Delivery)
    assert (delivery.request, delivery.attempt) == (request, 1)
    assert await transport.pull(MODEL, "b", 10) == []

    await transport.acknowledge(ticket)
    await transport.acknowledge(ticket)  # idempotent
    depth = await transport.depth(MODEL)
    assert (depth.waiting, depth.held) == (0, 0)


async def test_urgent_classes_are_pulled_first_and_room_is_kept(transport: RedisStreams) -> None:
    order = [PriorityClass.BATCH, PriorityClass.STANDARD, PriorityClass.INTERACTIVE]
    for priority in order:
        await transport.publish(make_request(priority=priority))

    first = await transport.pull(MODEL, "a", 2)
    rest = await transport.pull(MODEL, "a", 10)

    pulled = [item.ticket.priority for item in first + rest]
    assert (len(first), pulled) == (2, order[::-1])


async def test_the_queue_is_bounded_over_all_classes_and_room_comes_back(transport: RedisStreams) -> None:
    tickets = [
        await transport.publish(make_request(priority=priority))
        for priority in [*PriorityClass, PriorityClass.BATCH]
    ]

    with pytest.raises(QueueFull) as refused:
        await transport.publish(make_request())
    assert refused.value.retry_after

    await transport.acknowledge(tickets[0])  # cancelled while it waited
    await transport.publish(make_request())
    await transport.pull(MODEL, "a", 1)
    await transport.publish(make_request())


async def test_position_counts_down_as_others_are_pulled(transport: RedisStreams) -> None:
    tickets = [await transport.publish(make_request()) for _ in range(3)]

    assert [await transport.position(ticket) for ticket in tickets] == [1, 2, 3]
    await transport.pull(MODEL, "a", 2)
    assert [await transport.position(ticket) for ticket in tickets] == [0, 0, 1]


async def test_depth_tells_the_age_of_the_oldest_that_waits(transport: RedisStreams, backend: Backend) -> None:
    await transport.publish(make_request())
    await transport.publish(make_request())
    await transport.pull(MODEL, "a", 1)

    depth = await transport.depth(MODEL)

    assert (depth.waiting, depth.held) == (1, 1)
    assert 0 <= depth.oldest_age < 5


async def test_a_silent_worker_loses_its_message_and_a_beating_one_keeps_it(transport: RedisStreams) -> None:
    silent, beating = await transport.publish(make_request()), await transport.publish(make_request())
    await transport.pull(MODEL, "a", 2)

    async with asyncio.timeout(5):
        while not (found := await transport.claim(MODEL, "b", 10)):
            assert await transport.renew(MODEL, "a", [beating]) == []

    assert [item.ticket.entry for item in found] == [silent.entry]
    assert isinstance(found[0], Delivery)
    assert found[0].attempt == 2
    assert await transport.renew(MODEL, "a", [silent, beating]) == [silent]


async def test_a_released_message_is_claimable_at_once_and_its_worker_does_not_count_as_lost(
    backend: Backend,
) -> None:
    transport = RedisStreams(backend.server, depth=4, lease=300)
    ticket = await transport.publish(make_request())
    await transport.pull(MODEL, "a", 1)
    assert await transport.claim(MODEL, "b", 1) == []

    await transport.release(MODEL, "b", [ticket])  # not b's to release
    assert await transport.claim(MODEL, "b", 1) == []
    await transport.release(MODEL, "a", [ticket])

    [found] = await transport.claim(MODEL, "b", 1)
    assert isinstance(found, Delivery)
    assert found.attempt == 1


async def test_a_message_that_is_no_request_is_told_apart(transport: RedisStreams, backend: Backend) -> None:
    await backend.redis.xadd(keys.queue(MODEL, PriorityClass.STANDARD), {"r": b'{"id": 5}'})

    [item] = await transport.pull(MODEL, "a", 1)

    assert isinstance(item, Undecodable)
    assert "id" in item.reason


async def test_the_script_survives_a_server_that_forgot_it(transport: RedisStreams, backend: Backend) -> None:
    await transport.publish(make_request())
    await backend.redis.script_flush()
    assert len(await transport.pull(MODEL, "a", 1)) == 1


@given(steps=st.lists(st.sampled_from(["publish", "pull", "ack", "discard", "release", "claim"]), max_size=40))
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_counts_stay_true_under_any_order_of_operations(settings: Settings, steps: list[str]) -> None:
    """Given any history, if messages are counted, then each is waiting or held, and none is in two places."""
    backend = Backend.open(settings)
    try:
        await backend.redis.flushall()
        transport = RedisStreams(backend.server, depth=10, lease=300)
        waiting, held, released = [], {}, set()
        for step in steps:
            if step == "publish" and len(waiting) < 10:
                waiting.append((await transport.publish(make_request())).entry)
            elif step == "pull":
                for item in await transport.pull(MODEL, "a", 2):
                    assert item.ticket.entry == waiting.pop(0)
                    held[item.ticket.entry] = item.ticket
            elif step == "ack" and held:
                ticket = held.pop(next(iter(held)))
                released.discard(ticket.entry)
                await transport.acknowledge(ticket)
            elif step == "discard" and waiting:
                await transport.acknowledge(Ticket(MODEL, PriorityClass.STANDARD, waiting.pop()))
            elif step == "release" and held:
                entry = next(iter(held))
                await transport.release(MODEL, "a", [held[entry]])
                released.add(entry)
            elif step == "claim":
                found = {item.ticket.entry for item in await transport.claim(MODEL, "a", 10)}
                assert found == released
                released.clear()
            depth = await transport.depth(MODEL)
            assert (depth.waiting, depth.held) == (len(waiting), len(held))
    finally:
        await backend.close()

"""Targets for the first token: the earliest deadline first, and refusal of a request that would start late."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

import pytest

from shared.backend import Backend
from shared.errors import TargetUnreachable
from shared.protocol import PriorityClass, Request, Ticket
from shared.queue.interface import USUAL_TTFT_TARGET_S, Room, Transport
from shared.redis import keys
from shared.settings import Settings
from tests.support.fakes import MODEL, lapse, make_request
from tests.support.queue_calls import ids, pull

SOON, LATER = 1.0, USUAL_TTFT_TARGET_S + 600


def targeted(target: float, ago: float = 0.0, **fields: object) -> Request:
    """Return a request with a target that was created `ago` seconds ago."""
    return make_request(created_at=time.time() - ago, ttft_target=target, **fields)  # type: ignore[arg-type]


async def test_the_earliest_deadline_goes_first(transport: Transport) -> None:
    """One without a target counts as having the usual one; those that arrive later than that do not overtake it."""
    later, usual, soon = targeted(LATER), make_request(), targeted(SOON)
    overdue = targeted(SOON, ago=600)
    for request in (later, usual, soon, overdue):
        await transport.publish(request)

    assert ids(await pull(transport, 10)) == [each.id for each in (overdue, soon, usual, later)]


async def test_equal_targets_and_none_keep_the_order_of_arrival(
    roomy: Settings, backend_of: Callable[..., Backend]
) -> None:
    for kind in ("redis", "memory"):
        transport = (await backend_of(kind, roomy)).transport
        requests = [make_request() for _ in range(50)]
        await transport.publish_many(requests)

        assert ids(await pull(transport, 100)) == [each.id for each in requests]


async def test_no_request_is_overtaken_for_longer_than_the_usual_target(transport: Transport) -> None:
    """A request that has waited for the usual target goes before any that arrives with one."""
    waits = targeted(USUAL_TTFT_TARGET_S, ago=USUAL_TTFT_TARGET_S)  # arrived then, and without a target
    await transport.publish(waits)
    for _ in range(3):
        await transport.publish(targeted(SOON))

    assert ids(await pull(transport, 1)) == [waits.id]


async def test_a_target_does_not_change_the_turns_of_tenants_and_classes(transport: Transport) -> None:
    interactive = make_request(priority=PriorityClass.INTERACTIVE)
    mine, other = [targeted(SOON, ago=60), targeted(SOON, ago=30)], make_request(tenant="z")
    for request in (*mine, other, interactive):
        await transport.publish(request)

    assert ids(await pull(transport, 10)) == [interactive.id, mine[0].id, other.id, mine[1].id]


async def test_position_and_age_follow_from_order_and_arrival(transport: Transport) -> None:
    usual, soon = make_request(), targeted(SOON)
    places = [await transport.publish(each) for each in (usual, soon)]
    outlooks = [await transport.outlook(each) for each in places]
    assert [each.position for each in outlooks if each is not None] == [2, 1]

    first = (await transport.depth(MODEL)).oldest_age
    await transport.discard(places[0])
    assert (await transport.depth(MODEL)).oldest_age <= first + 1
    await transport.discard(places[1])
    assert (await transport.depth(MODEL)).oldest_age < 1


async def test_the_oldest_is_found_behind_those_with_targets(
    roomy: Settings, backend_of: Callable[..., Backend]
) -> None:
    """The request without a target stands last in its lane, behind more than are read together."""
    backend = await backend_of("redis", roomy)
    usual = make_request()
    await backend.transport.publish(usual)
    counters, waiting, *_ = keys.transport(MODEL)
    value = await backend.redis.hget(waiting, usual.id)
    cost, seats, born, payload = value.split(b":", 3)
    await backend.redis.hset(waiting, usual.id, b":".join([cost, seats, b"%d" % (int(born) - 60_000), payload]))
    await backend.transport.publish_many([targeted(SOON) for _ in range(150)])

    assert (await backend.transport.depth(MODEL)).oldest_age > 59
    assert await backend.redis.hget(counters, "targeted") == b"150"
    while await pull(backend.transport, 50):
        pass
    assert await backend.redis.hget(counters, "targeted") is None
    [left] = [name for name in keys.transport(MODEL) if name.endswith(":targeted")]
    assert not await backend.redis.exists(left)


async def test_both_queues_serve_in_the_same_order(roomy: Settings, backend_of: Callable[..., Backend]) -> None:
    """Given random publishes, pulls and discards of targets and none, Redis and memory pull the same requests."""
    queues = [(await backend_of(kind, roomy)).transport for kind in ("redis", "memory")]
    draw = Random(5)
    waiting: list[Ticket] = []
    for _ in range(300):
        what = draw.random()
        if what < 0.6:
            fields = {"priority": PriorityClass.BATCH}
            request = targeted(100.0 * draw.randint(1, 9), ago=draw.choice((0, 1000, 2000)), **fields)
            if draw.random() < 0.4:
                request = make_request(**fields)
            [ticket, same] = [await queue.publish(request) for queue in queues]
            assert ticket == same
            waiting.append(ticket)
        elif what < 0.8 and waiting:
            ticket = waiting.pop(draw.randrange(len(waiting)))
            for queue in queues:
                await queue.discard(ticket)
        else:
            found = [(await queue.pull(MODEL, "a", Room.all(2))).found for queue in queues]
            assert ids(found[0]) == ids(found[1])
            for queue, taken in zip(queues, found, strict=True):
                await queue.acknowledge([delivery.claim for delivery in taken])
    assert len(waiting) > 5


async def test_a_takeover_keeps_the_order(settings: Settings, backend_of: Callable[..., Backend]) -> None:
    backend = await backend_of("redis", settings)
    usual, later, soon = make_request(), targeted(LATER), targeted(SOON)
    for request in (usual, later, soon):
        await backend.transport.publish(request)
    order = [soon.id, usual.id, later.id]
    assert ids(await pull(backend.transport, 10, "lost")) == order

    await lapse(backend)
    assert ids((await backend.transport.claim(MODEL, "next", Room.all(10))).found) == order


async def test_what_an_earlier_version_queued_goes_first(
    settings: Settings, backend_of: Callable[..., Backend]
) -> None:
    """An earlier version numbered its requests 1, 2 and so on; it continues from the last arrival of this one."""
    backend = await backend_of("redis", settings)
    counters, *_ = keys.transport(MODEL)
    lane = f"{keys.lane_prefix(MODEL)}2:default"
    old = [make_request(), make_request()]
    for order, request in enumerate(old, 1):
        await backend.transport.publish(request)
        await backend.redis.zadd(lane, {request.id: order})
    await backend.redis.hset(counters, "ordinal", 2)
    new, soon = make_request(), targeted(SOON)
    await backend.transport.publish(new)
    await backend.transport.publish(soon)
    last = float(await backend.redis.hget(counters, "ordinal"))
    assert await backend.redis.zscore(lane, new.id) <= last < await backend.redis.zscore(lane, new.id) + 1e6

    assert ids(await pull(backend.transport, 10)) == [each.id for each in (*old, soon, new)]


async def test_a_request_that_would_start_late_is_refused(transport: Transport) -> None:
    """With the only seat taken, and one request pulled in the last second, the next waits for 1 s."""
    await transport.publish(make_request())
    await pull(transport, 1)
    [ahead] = [await transport.publish(make_request())]

    await transport.publish(targeted(SOON * 1.5))  # it may be late
    late = targeted(SOON * 1.5, ago=1.4, refuse_late=True)
    with pytest.raises(TargetUnreachable) as refused:
        await transport.publish(late)
    wait = refused.value.details["estimated_wait"]
    assert wait > 0.9
    assert refused.value.retry_after == pytest.approx(wait, abs=1)
    assert await transport.outlook(Ticket(late.id, MODEL, late.priority, late.tenant)) is None
    assert await transport.outlook(ahead) is not None


async def test_a_request_with_a_free_seat_or_no_estimate_is_not_refused(transport: Transport) -> None:
    await transport.publish(targeted(SOON, refuse_late=True))  # nothing was ever pulled
    assert len(await pull(transport, 3)) == 1
    await transport.publish(targeted(SOON, refuse_late=True))
    await transport.publish(targeted(SOON, refuse_late=True))
    assert len(await pull(transport, 2)) == 2

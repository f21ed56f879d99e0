"""The contract of a Transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from shared.backend import Backend
from shared.errors import QueueFull, TenantQueueFull
from shared.protocol import PriorityClass, Request
from shared.queue.interface import CLASS_WEIGHTS, Delivery, Room, Transport
from shared.queue.memory import MemoryTransport
from shared.settings import Settings
from shared.validation.request_limits import token_estimate
from tests.support.backends import opened
from tests.support.fakes import MODEL, lapse, make_request, publish_garbage
from tests.support.kafka_mock import moved
from tests.support.waiting import LIMIT_S

INTERACTIVE, STANDARD, BATCH = PriorityClass


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"queue_depth": 4, "tenant_queue_depth": 4})


@pytest.fixture(params=["redis", "memory", "kafka"])
async def backend(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[Backend]:
    """What Kafka's is given is reserved, written to its topic, and taken from there at once."""
    made = await opened("memory" if request.param == "memory" else "redis", settings)
    if request.param == "kafka":
        made = moved(made, settings, request.getfixturevalue("kafka_writer"))
    yield made
    await made.close()


@pytest.fixture
def transport(backend: Backend) -> Transport:
    return backend.transport


async def pull(transport: Transport, room: int, worker: str = "a") -> list[Delivery]:
    found = (await transport.pull(MODEL, worker, Room.all(room))).found
    assert all(isinstance(item, Delivery) for item in found)
    return found


def ids(found: Sequence[Delivery]) -> list[str]:
    return [item.claim.job_id for item in found]


async def counts(transport: Transport) -> tuple[int, int]:
    depth = await transport.depth(MODEL)
    return depth.waiting, depth.held


async def test_a_message_is_handed_out_once_and_is_gone_once_acknowledged(transport: Transport) -> None:
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


async def test_publishing_again_what_waits_changes_nothing(transport: Transport) -> None:
    request = make_request()
    assert await transport.publish(request) == await transport.publish(request)
    assert await counts(transport) == (1, 0)
    assert ids(await pull(transport, 10)) == [request.id]


async def test_urgent_classes_are_pulled_first_and_room_is_kept(transport: Transport) -> None:
    for priority in (BATCH, STANDARD, INTERACTIVE):
        await transport.publish(make_request(priority=priority))

    first, rest = await pull(transport, 2), await pull(transport, 10)

    assert [item.claim.priority for item in first + rest] == [INTERACTIVE, STANDARD, BATCH]
    assert len(first) == 2


async def test_each_class_has_room_of_its_own_out_of_the_same_seats(transport: Transport) -> None:
    for priority in (BATCH, INTERACTIVE, INTERACTIVE, STANDARD):
        await transport.publish(make_request(priority=priority))

    found = (await transport.pull(MODEL, "a", Room(4, {INTERACTIVE: 3, STANDARD: 1, BATCH: 1}))).found

    assert sorted(item.claim.priority for item in found) == [INTERACTIVE, INTERACTIVE]


async def test_choices_need_a_seat_each_and_too_many_are_left_to_an_idle_worker(transport: Transport) -> None:
    wide, narrow = make_request(n=3), make_request()
    await transport.publish(wide)
    await transport.publish(narrow)

    assert await transport.pull(MODEL, "a", Room(3, dict.fromkeys(PriorityClass, 2))) == ([], True, False)
    assert ids(await pull(transport, 2)) == [wide.id]  # it is too wide for anybody: to be refused


async def registered(transport: Transport, *workers: str) -> None:
    """Let workers be known to pull; nothing waits yet."""
    for worker in workers:
        assert await pull(transport, 10, worker) == []


async def test_workers_share_what_waits(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.queue.interface.SPARE_S", 600.0)
    await registered(transport, "a", "b")
    for _ in range(4):
        await transport.publish(make_request())

    assert len(await pull(transport, 10, "a")) == 2
    assert len(await pull(transport, 10, "b")) == 2


async def test_a_loaded_worker_leaves_requests_to_an_idle_one(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.queue.interface.SPARE_S", 600.0)
    await registered(transport, "a", "b")
    await transport.publish(make_request())
    assert len(await pull(transport, 10, "a")) == 1  # at once: none is less loaded
    await transport.publish(make_request())

    assert await transport.pull(MODEL, "a", Room.all(10)) == ([], True, True)
    assert len(await pull(transport, 10, "b")) == 1


async def test_a_loaded_worker_takes_what_an_idle_one_leaves(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an idle worker that is gone, then only the first request waits for it."""
    monkeypatch.setattr("shared.queue.interface.SPARE_S", 0.0)
    await registered(transport, "a", "gone")
    for waits in (False, True, False, False):
        await transport.publish(make_request())
        if waits:
            assert await transport.pull(MODEL, "a", Room.all(10)) == ([], True, True)
        assert len(await pull(transport, 10, "a")) == 1


async def test_requests_are_not_left_to_a_full_worker(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.queue.interface.SPARE_S", 600.0)
    assert await pull(transport, 1, "small") == []
    assert await pull(transport, 2, "large") == []
    for worker in ("small", "large", "large"):
        await transport.publish(make_request())
        assert len(await pull(transport, 1 if worker == "small" else 2, worker)) == 1


async def shares(backend: Backend, publish: Callable[[int], Request], rounds: int) -> list[Request]:
    """Requests in the order in which one seat at a time takes them, while as many wait as ever."""
    for i in range(30):
        await backend.transport.publish(publish(i))
    order = []
    for _ in range(rounds):
        [delivery] = await pull(backend.transport, 1)
        await backend.transport.acknowledge([delivery.claim])
        order.append(delivery.request)
    return order


@pytest.fixture
def roomy(settings: Settings) -> Settings:
    return settings.model_copy(update={"queue_depth": 1000, "tenant_queue_depth": 1000})


@pytest.mark.parametrize("kind", ["redis", "memory"])
async def test_classes_share_by_weight_and_none_starves(
    kind: str, roomy: Settings, backend_of: Callable[..., Backend]
) -> None:
    backend = await backend_of(kind, roomy)
    classes = list(PriorityClass)
    order = await shares(backend, lambda i: make_request(priority=classes[i % 3]), 12)
    taken = [sum(request.priority is priority for request in order) for priority in classes]
    assert taken == [9, 2, 1]
    assert list(CLASS_WEIGHTS.values()) == [16, 4, 1]


@pytest.mark.parametrize("kind", ["redis", "memory"])
async def test_tenants_take_turns_by_tokens_not_by_requests(
    kind: str, roomy: Settings, backend_of: Callable[..., Backend]
) -> None:
    """Given one tenant with long requests and one with short ones, then each gets the same number of tokens."""
    backend = await backend_of(kind, roomy)

    def publish(i: int) -> Request:
        tenant = "long" if i < 10 else "short"
        return make_request("", max_tokens=400 if tenant == "long" else 100, tenant=tenant)

    order = await shares(backend, publish, 15)
    taken = [sum(request.tenant == tenant for request in order) for tenant in ("long", "short")]
    assert taken == [3, 12]


@pytest.mark.parametrize("kind", ["redis", "memory"])
async def test_a_tenant_gains_nothing_by_queueing_one_at_a_time(
    kind: str, roomy: Settings, backend_of: Callable[..., Backend]
) -> None:
    backend = await backend_of(kind, roomy)
    for _ in range(20):
        await backend.transport.publish(make_request(tenant="patient"))
    order = []
    for _ in range(10):
        if "pushy" not in order[-1:]:
            await backend.transport.publish(make_request(tenant="pushy"))
        [delivery] = await pull(backend.transport, 1)
        order.append(delivery.request.tenant)
    assert 4 <= order.count("patient") <= 6


async def test_the_queue_is_bounded_over_all_classes_and_room_comes_back(transport: Transport) -> None:
    tickets = [await transport.publish(make_request(priority=priority)) for priority in [*PriorityClass, BATCH]]

    with pytest.raises(QueueFull) as refused:
        await transport.publish(make_request())
    assert refused.value.retry_after

    await transport.discard(tickets[0])
    await transport.discard(tickets[0])  # idempotent
    await transport.publish(make_request())
    await pull(transport, 1)
    await transport.publish(make_request())


async def test_of_many_published_at_once_each_has_its_own_reply(transport: Transport) -> None:
    """Given room for 4, if 6 come in one call, Expect 4 tickets and 2 refusals; and no change by the same again."""
    requests = [make_request() for _ in range(6)]
    places = await transport.publish_many(requests)
    assert [getattr(place, "job_id", None) for place in places] == [each.id for each in requests[:4]] + [None] * 2
    assert all(isinstance(place, QueueFull) and place.retry_after for place in places[4:])
    assert await transport.publish_many(requests[:4]) == places[:4]
    assert ids(await pull(transport, 10)) == [each.id for each in requests[:4]]
    assert await transport.publish_many([]) == []


@pytest.mark.parametrize("kind", ["redis", "memory"])
async def test_a_tenant_has_bounds_of_its_own_in_requests_and_tokens(
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


async def test_a_refused_client_is_told_the_time_that_the_queue_needs(transport: Transport) -> None:
    """Given that 4 of 4 places are taken and one was drained in the last second, then a tenth of them takes 1 s."""
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


async def test_what_neither_waits_nor_is_held_is_missing(transport: Transport) -> None:
    first, second, done, unknown = (make_request() for _ in range(4))
    for request in (done, first, second):
        await transport.publish(request)
    [finished, _] = (await transport.pull(MODEL, "a", Room.all(2))).found
    await transport.acknowledge([finished.claim])
    asked = [first.id, second.id, done.id, unknown.id]
    assert await transport.missing(MODEL, asked) == [done.id, unknown.id]


async def test_depth_tells_the_age_of_the_oldest_that_waits(transport: Transport) -> None:
    await transport.publish(make_request())
    await transport.publish(make_request())
    await pull(transport, 1)

    depth = await transport.depth(MODEL)

    assert (depth.waiting, depth.held) == (1, 1)
    assert 0 <= depth.oldest_age < LIMIT_S


async def test_a_silent_worker_loses_its_message_and_a_beating_one_keeps_it(
    backend: Backend, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await transport.publish(make_request())
    silent, beating = (item.claim for item in await pull(transport, 2))

    assert await transport.claim(MODEL, "b", 10) == []
    if isinstance(transport, MemoryTransport):
        now = time.time() + 2 * LIMIT_S
        monkeypatch.setattr(transport, "_clock", lambda: now)
    else:
        await lapse(backend)
    assert await transport.renew(MODEL, "a", [beating]) == []
    found = await transport.claim(MODEL, "b", 10)

    assert [item.claim for item in found] == [silent]
    assert isinstance(found[0], Delivery)
    assert found[0].attempt == 2
    assert await transport.renew(MODEL, "a", [silent, beating]) == [silent]


async def test_a_released_message_is_claimable_at_once_and_its_worker_does_not_count_as_lost(
    transport: Transport,
) -> None:
    await transport.publish(make_request())
    [delivery] = await pull(transport, 1)

    await transport.release(MODEL, "b", [delivery.claim])  # not b's to release
    assert await transport.claim(MODEL, "b", 1) == []
    await transport.release(MODEL, "a", [delivery.claim])

    [found] = await transport.claim(MODEL, "b", 1)
    assert isinstance(found, Delivery)
    assert found.attempt == 1


async def test_deadlines_are_told_whether_a_request_waits_or_is_held(transport: Transport) -> None:
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


async def test_a_message_that_is_no_request_is_set_aside(on_redis: Backend) -> None:
    await publish_garbage(on_redis, b'{"id": 5}')
    assert (await on_redis.transport.pull(MODEL, "a", Room.all(1))).found == []
    assert await counts(on_redis.transport) == (0, 0)
    assert on_redis.server is not None
    assert on_redis.server.foreign.found == {"queue": 1}


async def test_the_script_survives_a_server_that_forgot_it(on_redis: Backend) -> None:
    await on_redis.transport.publish(make_request())
    await on_redis.redis.script_flush()
    assert len(await pull(on_redis.transport, 1)) == 1


async def test_workers_that_are_no_more_are_struck_off_unless_they_hold_something(
    on_redis: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.queue.redis_streams.STRANGER", 0.0)
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


async def test_nothing_is_left_behind_by_tenants_that_are_gone(on_redis: Backend) -> None:
    before = {*await on_redis.redis.keys("*")}
    for i in range(4):
        await on_redis.transport.publish(make_request(tenant=f"t{i}"))
    for item in await pull(on_redis.transport, 10):
        await on_redis.transport.acknowledge([item.claim])
    left = {*await on_redis.redis.keys("*")} - before
    counters = await on_redis.redis.hgetall("hr:{q:scripted}:counters")
    assert sorted(left) == [b"hr:{q:scripted}:" + name for name in (b"counters", b"pullers", b"standard")]
    assert not [name for name in counters if b"t0" in name]

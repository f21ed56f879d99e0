"""Requests that are aimed at a worker: who takes them, and when others may."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import get_args

import pytest

from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.protocol import PriorityClass, Request
from shared.queue.interface import Pulled, Room, Transport
from shared.queue.memory import MemoryTransport
from shared.redis import keys
from shared.settings import PolicyName, Settings
from shared.validation.token_estimate import token_estimate
from tests.support.fakes import MODEL, lapse, make_request
from tests.support.queue_calls import ids, pull
from tests.support.waiting import LIMIT_S

INTERACTIVE, STANDARD, BATCH = PriorityClass
ROUTED = [name for name in get_args(PolicyName) if name != "pull"]


@pytest.fixture(autouse=True)
def fresh_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the router look at the workers before each request."""
    monkeypatch.setattr("shared.queue.router.HEARTBEATS_LIFE_S", 0.0)
    monkeypatch.setattr("shared.queue.router.LOADS_LIFE_S", 0.0)


@pytest.fixture(params=["redis", "memory"])
async def routed(
    request: pytest.FixtureRequest, roomy: Settings, backend_of: Callable[..., Backend]
) -> AsyncIterator[Backend]:
    """Open a backend under round-robin, with the workers a and b."""
    backend = await backend_of(request.param, roomy.model_copy(update={"routing": "round-robin"}))
    await join(backend, "a", "b")
    yield backend


async def join(backend: Backend, *workers: str) -> None:
    """Announce workers, and let them pull while nothing waits for them."""
    for worker in workers:
        await backend.registry.beat(WorkerInfo(id=worker, pid=1, model=MODEL, state="ready"))
        await backend.transport.claim(MODEL, worker, Room.all(10))


async def publish(transport: Transport, count: int, **fields: object) -> list[Request]:
    requests = [make_request(**fields) for _ in range(count)]
    for request in requests:
        await transport.publish(request)
    return requests


async def pull_all(transport: Transport, worker: str, room: int = 10) -> Pulled:
    return await transport.pull(MODEL, worker, Room.all(room))


async def test_a_worker_takes_its_own_behind_those_of_others(routed: Backend) -> None:
    first, second, third, fourth = await publish(routed.transport, 4)

    found, more, spared = await pull_all(routed.transport, "b")
    assert (ids(found), more, spared) == ([second.id, fourth.id], True, True)
    found, more, spared = await pull_all(routed.transport, "a")
    assert (ids(found), more, spared) == ([first.id, third.id], False, False)


async def test_requests_of_a_worker_that_leaves_go_to_all_at_once(routed: Backend) -> None:
    async with routed.live.subscribe(keys.wake_channel(MODEL)) as woken:
        requests = await publish(routed.transport, 2)
        assert [await woken.get(LIMIT_S) for _ in requests] == [b"published"] * 2
        await routed.transport.leave(MODEL, "a")
        assert await woken.get(LIMIT_S) == b"published"
    assert ids((await pull_all(routed.transport, "b")).found) == [each.id for each in requests]

    await publish(routed.transport, 2)  # all of them are b's now
    assert len((await pull_all(routed.transport, "b")).found) == 2


async def test_a_worker_that_has_left_is_not_kept_by_heartbeats(routed: Backend) -> None:
    await publish(routed.transport, 2)
    [held] = await pull(routed.transport, 1, "a")
    await routed.transport.leave(MODEL, "a")
    assert await routed.transport.renew(MODEL, "a", [held.claim]) == []
    await publish(routed.transport, 2)
    assert len((await pull_all(routed.transport, "b")).found) == 3


async def test_requests_of_a_silent_worker_go_to_all_at_once(
    routed: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = await publish(routed.transport, 4)
    assert ids(await pull(routed.transport, 1, "a")) == [requests[0].id]
    await pass_lease(routed, monkeypatch)
    found = (await pull_all(routed.transport, "b")).found
    assert ids(found) == [each.id for each in requests[1:]]


async def pass_lease(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time of a lease pass since the last call of each worker, and for each lease."""
    transport = backend.transport
    if isinstance(transport, MemoryTransport):
        now = transport._clock() + 2 * LIMIT_S
        monkeypatch.setattr(transport, "_clock", lambda: now)
    else:
        await lapse(backend)
        await backend.redis.hset(keys.transport(MODEL)[18], mapping={"a": "0:0", "b": "0:0"})


async def test_a_lost_worker_keeps_no_requests_once_its_lease_is_claimed(
    routed: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """b pulls before and after the loss, so that only the claim says that a is gone."""
    requests = await publish(routed.transport, 4)
    await pull(routed.transport, 1, "a")
    if isinstance(routed.transport, MemoryTransport):
        for held in routed.transport.queue(MODEL).held.values():
            held.beat = 0.0
    else:
        await lapse(routed)
    assert ids((await pull_all(routed.transport, "b")).found) == [requests[1].id, requests[3].id]
    assert ids((await routed.transport.claim(MODEL, "b", Room.all(10))).found) == [requests[0].id]
    assert ids((await pull_all(routed.transport, "b")).found) == [requests[2].id]


@pytest.fixture(params=["redis", "memory"])
async def impatient(
    request: pytest.FixtureRequest, roomy: Settings, backend_of: Callable[..., Backend]
) -> AsyncIterator[Backend]:
    """Open a backend whose workers wait for no other, once they have passed over its requests."""
    backend = await backend_of(
        request.param, roomy.model_copy(update={"routing": "round-robin", "routing_patience": 0.0})
    )
    await join(backend, "a", "b")
    yield backend


async def test_a_worker_with_room_takes_what_another_leaves(impatient: Backend) -> None:
    first, second = await publish(impatient.transport, 2)

    found, more, spared = await pull_all(impatient.transport, "b")
    assert (ids(found), more, spared) == ([second.id], True, True)
    found, more, spared = await pull_all(impatient.transport, "b")
    assert (ids(found), more, spared) == ([first.id], False, False)
    assert impatient.router.outcomes == {(MODEL, "aimed"): 2, (MODEL, "returned"): 1}


async def test_a_full_worker_does_not_take_what_another_leaves(impatient: Backend) -> None:
    """b is full after its own request: it has not had room while the other waited."""
    first, second, third, fourth = await publish(impatient.transport, 4)
    assert ids((await pull_all(impatient.transport, "b", 1)).found) == [second.id]
    assert ids((await pull_all(impatient.transport, "b", 1)).found) == [fourth.id]
    assert ids((await pull_all(impatient.transport, "a", 2)).found) == [first.id, third.id]


async def test_tokens_in_flight_follow_a_request(routed: Backend) -> None:
    async def in_flight() -> dict[str, int]:
        return await routed.transport._loads(MODEL)

    first, _ = await publish(routed.transport, 2)
    cost = token_estimate(first)
    assert await in_flight() == {"a": cost, "b": cost}
    [delivery] = await pull(routed.transport, 1, "a")
    assert await in_flight() == {"a": cost, "b": cost}
    await routed.transport.release(MODEL, "a", [delivery.claim])
    await pull(routed.transport, 1, "b")
    [taken_over] = (await routed.transport.claim(MODEL, "b", Room.all(2))).found
    await join(routed, "a")
    assert await in_flight() == {"a": 0, "b": 2 * cost}
    await routed.transport.acknowledge([taken_over.claim])
    assert await in_flight() == {"a": 0, "b": cost}
    waiting = make_request()
    ticket = await routed.transport.publish(waiting)
    assert await in_flight() == {"a": cost, "b": cost}
    await routed.transport.discard(ticket)
    assert await in_flight() == {"a": 0, "b": cost}


async def test_wide_requests_wait_for_seats_of_their_worker(routed: Backend) -> None:
    [wide] = await publish(routed.transport, 1, n=3)
    assert ids((await pull_all(routed.transport, "b")).found) == []
    assert (await routed.transport.pull(MODEL, "a", Room(3, dict.fromkeys(PriorityClass, 2)))).found == []
    assert ids(await pull(routed.transport, 3, "a")) == [wide.id]


@pytest.mark.parametrize("kind", ["redis", "memory"])
@pytest.mark.parametrize("routing", ROUTED)
async def test_classes_and_tenants_share_under_each_policy(
    kind: str, routing: PolicyName, roomy: Settings, backend_of: Callable[..., Backend]
) -> None:
    """Two workers take turns: each class gets its weight, and each tenant as many tokens as the other."""
    backend = await backend_of(kind, roomy.model_copy(update={"routing": routing}))
    await join(backend, "a", "b")
    transport = backend.transport
    for i in range(72):
        tenant = "long" if i % 2 else "short"
        fields = {"priority": list(PriorityClass)[i // 2 % 3], "tenant": tenant}
        await transport.publish(make_request(str(i), max_tokens=100, **fields))
    order = []
    while len(order) < 24:
        for worker in ("a", "b"):
            for delivery in await pull(transport, 1, worker):
                await transport.acknowledge([delivery.claim])
                order.append(delivery.request)
    taken = [sum(request.priority is priority for request in order) for priority in PriorityClass]
    assert abs(taken[0] - 18) <= 2
    assert abs(taken[1] - 4.6) <= 2
    assert taken[2] >= 1
    assert abs(sum(request.tenant == "long" for request in order) - 12) <= 3


@pytest.mark.parametrize("kind", ["redis", "memory"])
async def test_requests_without_a_known_worker_go_to_any(
    kind: str, roomy: Settings, backend_of: Callable[..., Backend]
) -> None:
    backend = await backend_of(kind, roomy.model_copy(update={"routing": "prefix-aware"}))
    requests = await publish(backend.transport, 2)
    await join(backend, "a")
    assert ids(await pull(backend.transport, 10)) == [each.id for each in requests]
    assert backend.router.outcomes == {(MODEL, "unaimed"): 2}


async def test_draining_and_sleeping_workers_are_not_chosen(routed: Backend) -> None:
    for state in ("draining", "sleeping"):
        await routed.registry.beat(WorkerInfo(id="a", pid=1, model=MODEL, state=state))
        await publish(routed.transport, 2)
        assert len((await pull_all(routed.transport, "b")).found) == 2


async def test_requests_of_an_earlier_version_go_to_any_worker(on_redis: Backend, roomy: Settings) -> None:
    """It publishes without an aim."""
    backend = Backend.open(roomy.model_copy(update={"routing": "round-robin"}))
    await join(backend, "a", "b")
    for_a, for_b = await publish(backend.transport, 2)
    [unaimed] = await publish(on_redis.transport, 1)
    for_a_too, _ = await publish(backend.transport, 2)

    assert ids(await pull(backend.transport, 2, "a")) == [for_a.id, for_a_too.id]
    assert ids(await pull(backend.transport, 2, "b")) == [for_b.id, unaimed.id]
    await backend.close()


async def test_upkeep_mends_what_follows_from_the_routes(on_redis: Backend, roomy: Settings) -> None:
    backend = Backend.open(roomy.model_copy(update={"routing": "round-robin"}))
    await join(backend, "a", "b")
    for_a, for_b = await publish(backend.transport, 2)
    counters, *_, routes, in_flight, _, _, _, _ = keys.transport(MODEL)
    await backend.redis.delete(*await backend.redis.keys(f"{keys.lane_prefix(MODEL)}aimed:*"))
    await backend.redis.hset(in_flight, mapping={"a": 9999, "gone": 5})
    await backend.redis.hset(counters, mapping={"routed": 7, "routed:a": 0, "routed:gone": 3})
    await backend.redis.hset(routes, "stray", "5:0:a")
    assert await pull(backend.transport, 10, "b") == []

    await backend.transport.lost(MODEL)

    cost = token_estimate(for_a)
    assert await backend.transport._loads(MODEL) == {"a": cost, "b": cost}
    assert ids(await pull(backend.transport, 10, "b")) == [for_b.id]
    assert ids(await pull(backend.transport, 10, "a")) == [for_a.id]
    assert not [name for name in await backend.redis.hkeys(counters) if name.startswith(b"routed")]
    await backend.close()


@pytest.mark.parametrize("kind", ["redis", "memory"])
async def test_a_worker_finds_its_own_behind_many_tenants(
    kind: str, roomy: Settings, backend_of: Callable[..., Backend]
) -> None:
    backend = await backend_of(kind, roomy.model_copy(update={"routing": "round-robin"}))
    await join(backend, "a", "b")
    for i in range(40):
        await backend.transport.publish(make_request(tenant=f"t{i:02}"))
    found = await pull(backend.transport, 3, "b")
    assert [item.request.tenant for item in found] == ["t01", "t03", "t05"]
    found = await pull(backend.transport, 30, "a")
    assert [item.request.tenant for item in found] == [f"t{i:02}" for i in range(0, 40, 2)]


async def test_a_worker_that_fills_up_has_no_room_for_what_it_passed_over(impatient: Backend) -> None:
    """b passes over an urgent request of a, and then fills its seat with its own."""
    await publish(impatient.transport, 1, priority=INTERACTIVE)
    first, _, second = await publish(impatient.transport, 3)
    assert ids(await pull(impatient.transport, 1, "b")) == [first.id]
    assert ids(await pull(impatient.transport, 1, "b")) == [second.id]


async def test_a_loaded_worker_takes_its_own_at_once(routed: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests without an aim would be left to the idle worker."""
    monkeypatch.setattr("shared.queue.interface.SPARE_S", 600.0)
    for worker in ("a", "b"):
        assert await pull(routed.transport, 10, worker) == []
    first = make_request()
    await routed.transport.publish(first)
    await routed.transport.discard(await routed.transport.publish(make_request()))  # b's
    assert ids(await pull(routed.transport, 10, "a")) == [first.id]
    second = make_request()
    await routed.transport.publish(second)
    assert ids(await pull(routed.transport, 10, "a")) == [second.id]

"""Fair queueing, and sharing of requests among workers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.backend import Backend
from shared.protocol import PriorityClass, Request
from shared.queue.interface import CLASS_WEIGHTS, Room, Transport
from shared.settings import Settings
from tests.support.fakes import MODEL, make_request
from tests.support.queue_calls import ids, pull

INTERACTIVE, STANDARD, BATCH = PriorityClass


async def test_urgent_classes_are_pulled_first_and_room_is_kept(transport: Transport) -> None:
    for priority in (BATCH, STANDARD, INTERACTIVE):
        await transport.publish(make_request(priority=priority))

    first, rest = await pull(transport, 2), await pull(transport, 10)

    assert [item.claim.priority for item in first + rest] == [INTERACTIVE, STANDARD, BATCH]
    assert len(first) == 2


async def test_each_class_has_its_own_room_in_shared_seats(transport: Transport) -> None:
    for priority in (BATCH, INTERACTIVE, INTERACTIVE, STANDARD):
        await transport.publish(make_request(priority=priority))

    found = (await transport.pull(MODEL, "a", Room(4, {INTERACTIVE: 3, STANDARD: 1, BATCH: 1}))).found

    assert sorted(item.claim.priority for item in found) == [INTERACTIVE, INTERACTIVE]


async def test_each_choice_needs_a_seat(transport: Transport) -> None:
    wide, narrow = make_request(n=3), make_request()
    await transport.publish(wide)
    await transport.publish(narrow)

    assert await transport.pull(MODEL, "a", Room(3, dict.fromkeys(PriorityClass, 2))) == ([], True, False)
    assert ids(await pull(transport, 2)) == [wide.id]  # too wide for any worker; this one will refuse it


async def registered(transport: Transport, *workers: str) -> None:
    """Register workers as pulling while nothing waits."""
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
    """Only the first request waits for an idle worker that is gone."""
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


async def hand_over(transport: Transport, count: int) -> None:
    """Have a worker hold requests, and give them back."""
    for _ in range(count):
        await transport.publish(make_request())
    held = await pull(transport, 10, "gone")
    assert len(held) == count
    await transport.release(MODEL, "gone", [delivery.claim for delivery in held])


async def claim(transport: Transport, worker: str) -> tuple[int, bool, bool]:
    """Return how many requests a worker gets, whether some are left, and whether these are left to others."""
    found, left, spared = await transport.claim(MODEL, worker, Room.all(10))
    return len(found), left, spared


async def test_workers_share_what_a_lost_one_held(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.queue.interface.SPARE_S", 600.0)
    await hand_over(transport, 4)
    await registered(transport, "a", "b")

    assert await claim(transport, "a") == (2, True, True)
    assert await claim(transport, "a") == (0, True, True)
    assert await claim(transport, "b") == (2, False, False)
    assert await claim(transport, "a") == (0, False, False)


async def test_a_worker_takes_over_what_an_idle_one_leaves(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.queue.interface.SPARE_S", 0.0)
    await hand_over(transport, 4)
    await registered(transport, "a", "silent")

    assert await claim(transport, "a") == (2, True, True)
    assert await claim(transport, "a") == (2, False, False)


async def shares(backend: Backend, publish: Callable[[int], Request], rounds: int) -> list[Request]:
    """Return requests in the order in which single pulls take them, with the queue kept equally long."""
    for i in range(30):
        await backend.transport.publish(publish(i))
    order = []
    for _ in range(rounds):
        [delivery] = await pull(backend.transport, 1)
        await backend.transport.acknowledge([delivery.claim])
        order.append(delivery.request)
    return order


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
    """A tenant with long requests and one with short ones get the same number of tokens."""
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

"""The contract of RepositoryStore, and what only a server does: expiry, and foreign data."""

from __future__ import annotations

import asyncio

import pytest

from shared.backend import Backend
from shared.models.worker_registry import LOADING_LEASES
from shared.redis import keys
from shared.repository.spec import ModelSpec
from shared.repository.status import ModelStatus, VersionState, VersionStatus
from shared.repository.store import ModelOrder, OrderResult
from shared.settings import Settings
from tests.support.foreign_counts import foreign
from tests.support.waiting import LIMIT_S

LOAD = ModelOrder(id="order-1", model="iris", action="load", config="{}", files={"1/model.onnx": b"\x00\xff"})


def status(name: str, state: VersionState = "READY") -> ModelStatus:
    return ModelStatus(name=name, spec=ModelSpec(name=name), versions=(VersionStatus(version="1", state=state),))


async def test_statuses_are_replaced_and_listed_by_name(backend: Backend) -> None:
    await backend.repository.report("a", [status("zebra"), status("old")])
    await backend.repository.report("a", [status("zebra")])
    await backend.repository.report("b", [status("iris")])
    assert await backend.repository.statuses() == [status("iris"), status("zebra")]


async def test_a_worker_that_leaves_has_no_statuses(backend: Backend) -> None:
    await backend.repository.report("a", [status("iris")])
    await backend.repository.report("a", [])
    assert await backend.repository.statuses() == []


async def test_a_model_has_the_order_that_was_placed_last(backend: Backend) -> None:
    """The second call of `orders` finds what the first one has read already."""
    unload = ModelOrder(id="order-2", model="iris", action="unload")
    other = ModelOrder(id="order-3", model="zebra", action="load")
    await backend.repository.place(unload)
    await backend.repository.place(LOAD)
    await backend.repository.place(other)
    for _ in range(2):
        assert sorted(await backend.repository.orders(), key=lambda order: order.id) == [LOAD, other]
    await backend.repository.place(unload)
    assert sorted(await backend.repository.orders(), key=lambda order: order.id) == [unload, other]


async def test_workers_are_told_of_an_order(backend: Backend) -> None:
    async with asyncio.timeout(LIMIT_S), backend.live.subscribe(keys.REPOSITORY_WAKE) as woken:
        await backend.repository.place(LOAD)
        assert await woken.get(None) == b"iris"


async def test_the_first_answer_to_an_order_is_kept(backend: Backend) -> None:
    assert await backend.repository.result("order-1") is None
    failed = OrderResult(id="order-1", error="no such file")
    await backend.repository.answer(failed)
    await backend.repository.answer(OrderResult(id="order-1"))
    assert await backend.repository.result("order-1") == failed


@pytest.mark.parametrize(("state", "leases"), [("READY", 1), ("LOADING", LOADING_LEASES)])
async def test_statuses_expire_as_heartbeats_do(
    on_redis: Backend, settings: Settings, state: VersionState, leases: int
) -> None:
    await on_redis.repository.report("a", [status("iris", state)])
    key = keys.REPOSITORY_PREFIX + "a"
    left = await on_redis.redis.pttl(key) / 1000
    assert (leases - 1) * settings.lease < left <= leases * settings.lease
    await on_redis.redis.pexpire(key, 0)
    assert await on_redis.repository.statuses() == []
    assert await on_redis.redis.smembers(keys.REPOSITORY_WORKERS) == set()


async def test_junk_in_the_store_hides_no_model(on_redis: Backend) -> None:
    await on_redis.redis.sadd(keys.REPOSITORY_WORKERS, b"\xff", "junk", "typed")
    await on_redis.redis.set(keys.REPOSITORY_PREFIX + "junk", "[{")
    await on_redis.redis.rpush(keys.REPOSITORY_PREFIX + "typed", "x")
    await on_redis.repository.report("real", [status("iris")])
    assert await on_redis.repository.statuses() == [status("iris")]

    await on_redis.repository.place(LOAD)
    orders, ids = keys.ORDERS
    for model, order_id, order in ((b"\xff", b"\xfe", "{"), (b"lost", b"order-9", None), (b"other", b"x", "{}")):
        await on_redis.redis.hset(ids, model, order_id)
        if order is not None:
            await on_redis.redis.hset(orders, model, order)
    await on_redis.redis.set(keys.order_result("order-1"), "{")
    for _ in range(2):
        assert await on_redis.repository.orders() == [LOAD]
        assert await on_redis.repository.result("order-1") is None
    assert foreign(on_redis)["repository"] == 6


@pytest.mark.parametrize("key", [keys.REPOSITORY_WORKERS, *keys.ORDERS, keys.order_result("order-1")])
async def test_a_foreign_key_of_another_type_keeps_nothing_from_working(on_redis: Backend, key: str) -> None:
    await on_redis.redis.xadd(key, {"a": "b"})
    await on_redis.repository.report("a", [status("iris")])
    await on_redis.repository.place(LOAD)
    await on_redis.repository.answer(OrderResult(id="order-1"))
    assert await on_redis.repository.statuses() == [status("iris")]
    assert await on_redis.repository.orders() == [LOAD]
    assert await on_redis.repository.result("order-1") == OrderResult(id="order-1")

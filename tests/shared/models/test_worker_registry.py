"""The registry of workers on Redis."""

from __future__ import annotations

from typing import Literal

import pytest

from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo, remove_process, worker_id_prefix
from shared.redis import keys
from shared.settings import Settings
from tests.support.fakes import MODEL


@pytest.mark.parametrize(("state", "leases"), [("loading", 3), ("ready", 1), ("draining", 1)])
async def test_a_worker_is_listed_for_one_lease_after_its_heartbeat(
    on_redis: Backend, settings: Settings, state: Literal["loading", "ready", "draining"], leases: int
) -> None:
    worker = WorkerInfo(id="a", pid=1, model=MODEL, state=state)
    await on_redis.registry.beat(worker)
    left = await on_redis.redis.pttl(keys.worker("a")) / 1000
    assert (leases - 1) * settings.lease < left <= leases * settings.lease
    await on_redis.redis.pexpire(keys.worker("a"), 0)
    assert await on_redis.registry.workers() == []


@pytest.mark.parametrize(("state", "leases"), [("loading", 3), ("ready", 1)])
async def test_a_heartbeat_ages_by_the_servers_clock(
    on_redis: Backend, settings: Settings, state: Literal["loading", "ready"], leases: int
) -> None:
    await on_redis.registry.beat(WorkerInfo(id="a", pid=1, model=MODEL, state=state))
    await on_redis.redis.pexpire(keys.worker("a"), int(1000 * (leases - 0.5) * settings.lease))
    [worker] = await on_redis.registry.workers()
    assert worker.heartbeat_age is not None
    assert 0.5 * settings.lease <= worker.heartbeat_age <= settings.lease


async def test_the_workers_of_a_process_are_removed(on_redis: Backend) -> None:
    """Given workers of other processes and machines too, only those of the process are removed."""
    others = [worker_id_prefix(11) + "a", worker_id_prefix(2) + "a", "elsewhere-1-a"]
    for worker_id in (worker_id_prefix(1) + "a", *others):
        await on_redis.registry.beat(WorkerInfo(id=worker_id, pid=1, model=MODEL, state="ready"))
    await remove_process(on_redis.registry, 1)
    assert {worker.id for worker in await on_redis.registry.workers()} == set(others)


async def test_a_sleeping_worker_keeps_what_is_known_of_its_model(on_redis: Backend) -> None:
    worker = WorkerInfo(id="a", pid=1, model=MODEL, state="ready", max_model_len=64, fingerprint="fp_x")
    await on_redis.registry.beat(worker)
    await on_redis.redis.expire(keys.model(MODEL), 5)
    await on_redis.registry.beat(WorkerInfo(id="a", pid=1, model=MODEL, state="sleeping"))
    [model] = await on_redis.registry.models()
    assert (model.max_model_len, model.fingerprint) == (64, "fp_x")
    assert await on_redis.redis.ttl(keys.model(MODEL)) > 3600


async def test_a_foreign_key_does_not_keep_models_from_sleeping(on_redis: Backend) -> None:
    await on_redis.redis.set(keys.ASLEEP, "x")
    await on_redis.registry.set_asleep(MODEL, asleep=True)
    assert await on_redis.registry.asleep() == {MODEL}

"""Loads that ended their worker process are not repeated for ever, and their neighbours are not blamed."""

from __future__ import annotations

import asyncio

import pytest

from shared.backend import Backend
from shared.errors import ConfigError
from shared.models.worker_registry import WorkerInfo
from tests.support.waiting import LIMIT_S
from workers.repository.serving.loading_record import LoadingRecord
from workers.repository.serving.memory_budget import Holder

MOST = 3
BAD, GOOD = Holder("bad", 1, "stamp"), Holder("good", 1, "stamp")


async def lose(backend: Backend, holder: Holder, *workers: str) -> None:
    """Record loads that never ended, of workers that are no longer there."""
    for worker in workers:
        await backend.repository.begin_load(f"{holder.model}:{holder.version}:{holder.stamp}", worker)


@pytest.fixture
def record(backend: Backend) -> LoadingRecord:
    return LoadingRecord(backend, MOST)


async def test_a_load_that_ended_workers_is_not_repeated(backend: Backend, record: LoadingRecord) -> None:
    """Given as many lost workers as are allowed, the version is loaded only once it has changed."""
    await lose(backend, BAD, "a", "b", "c")
    with pytest.raises(ConfigError, match="loading bad version 1 has ended 3 worker processes"):
        async with record.loading(BAD, "next"):
            pass
    async with record.loading(Holder("bad", 1, "changed"), "next"):
        pass


async def test_a_load_that_succeeds_clears_the_version(backend: Backend, record: LoadingRecord) -> None:
    await lose(backend, GOOD, "a", "b")
    async with record.loading(GOOD, "next"):
        pass
    await lose(backend, GOOD, "c", "d")
    async with record.loading(GOOD, "next"):
        pass


async def test_workers_that_load_do_not_count_as_lost(backend: Backend, record: LoadingRecord) -> None:
    for worker in ("a", "b", "c"):
        await backend.registry.beat(WorkerInfo(id=worker, pid=1, model="good", state="loading"))
    await lose(backend, GOOD, "a", "b", "c")
    async with record.loading(GOOD, "next"):
        pass


async def test_a_suspect_loads_alone(backend: Backend, record: LoadingRecord) -> None:
    """Given two versions that loaded when a worker was lost, neither has begun while the other loads."""
    await lose(backend, BAD, "a")
    await lose(backend, GOOD, "a")
    loading: list[str] = []

    async def load(holder: Holder) -> None:
        async with record.loading(holder, holder.model):
            loading.append(holder.model)
            assert len(loading) == 1
            await asyncio.sleep(0)
            begun = [
                await backend.repository.begin_load(f"{name}:1:stamp", "looking") - {"looking", "a"}
                for name in ("bad", "good")
            ]
            assert sum(map(bool, begun)) == 1
            loading.remove(holder.model)

    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(load(BAD), load(GOOD))


async def test_others_load_beside_each_other(record: LoadingRecord) -> None:
    both = asyncio.Barrier(2)

    async def load(holder: Holder) -> None:
        async with record.loading(holder, holder.model):
            await both.wait()

    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(load(BAD), load(GOOD))

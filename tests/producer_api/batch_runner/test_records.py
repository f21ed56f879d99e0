"""Items of a batch: claimed by one process at a time, protected by the lease epoch, counted once."""

from __future__ import annotations

import asyncio

import pytest

from shared.backend import Backend
from shared.batches.store import FINALIZE, VALIDATE, Batches, Chunk, Item, LineError, chunk_name
from shared.errors import Conflict, NotFound, TooManyBatches
from shared.redis import keys
from tests.support.batch_records import batch_record
from tests.support.waiting import LIMIT_S

CHUNKS = [Chunk(0, 1, 64), Chunk(1000, 65, 10)]


def batches_of(backend: Backend, *, lease: float = 60, most: int = 10) -> Batches:
    assert backend.server is not None
    return Batches(backend.server, most_open=most, ttl=60, lease=lease)


@pytest.fixture
def batches(backend: Backend) -> Batches:
    return batches_of(backend)


async def claimed(batches: Batches, name: str = "batch_1") -> Item:
    item = await batches.claim(name)
    assert item is not None
    return item


async def test_a_batch_ends_once_all_items_are_done(batches: Batches) -> None:
    """Its states and counts follow its items."""
    await batches.create(batch_record())
    await batches.create(batch_record())  # changes nothing
    assert await batches.idle() == ["batch_1"]
    item = await claimed(batches)
    assert (item.name, item.chunk, item.status) == (VALIDATE, None, "validating")
    assert await batches.claim("batch_1") is None
    assert await batches.idle() == []
    assert await batches.plan(item, 74, CHUNKS)
    first, second = await claimed(batches), await claimed(batches)
    assert [(each.name, each.chunk) for each in (first, second)] == [
        (chunk_name(0), CHUNKS[0]),
        (chunk_name(1), CHUNKS[1]),
    ]
    for counts in ((3, 1), (3, 1), (5, 2)):
        assert await batches.renew(first, *counts) == "in_progress"
    record = await batches.get("batch_1")
    assert (record.total, record.completed, record.failed) == (74, 5, 2)
    assert await batches.done(second, 10, 0, late=False)
    assert await batches.claim("batch_1") is None
    assert await batches.done(first, 62, 2, late=False)
    assert (await batches.get("batch_1")).status == "finalizing"
    with pytest.raises(Conflict):
        await batches.cancel("batch_1")
    last = await claimed(batches)
    assert last.name == FINALIZE
    assert await batches.results("batch_1") == ["1", "1"]
    assert await batches.finish(last, "file-o", None)
    record = await batches.get("batch_1", "default")
    assert (record.status, record.completed, record.failed) == ("completed", 72, 2)
    assert (record.output_file_id, record.error_file_id) == ("file-o", None)
    assert set(record.times) == {"in_progress", "finalizing", "completed"}
    assert await batches.open() == []


async def test_a_holder_without_its_lease_is_refused(backend: Backend) -> None:
    """After another process claimed the item, every call of the first holder is refused."""
    batches = batches_of(backend, lease=0.05)
    await batches.create(batch_record())
    late = await claimed(batches)
    while (item := await batches.claim("batch_1")) is None:
        await asyncio.sleep(0.01)
    assert int(item.fence) > int(late.fence)
    assert await batches.renew(late, 1, 1) is None
    assert not await batches.plan(late, 1, CHUNKS)
    assert not await batches.fail(late, [LineError("x", "x")])
    await batches.release(late)
    assert await batches_of(backend).plan(item, 74, CHUNKS)
    late = await claimed(batches)
    while (taken := await batches.claim("batch_1")) is None or taken.name != late.name:
        await asyncio.sleep(0.01)
    assert not await batches.done(late, 64, 0, late=False)
    assert await batches.done(taken, 63, 1, late=True)
    assert not await batches.done(taken, 63, 1, late=True)
    record = await batches.get("batch_1")
    assert (record.completed, record.failed) == (63, 1)


async def test_a_foreign_deadline_holds_an_item_no_longer_than_a_lease(backend: Backend) -> None:
    batches = batches_of(backend, lease=0.05)
    await batches.create(batch_record())
    for deadline in (9e15, float("inf")):
        await backend.redis.zadd(keys.batch("batch_1")[1], {VALIDATE: deadline})
        async with asyncio.timeout(LIMIT_S):
            while not await batches.idle():
                await asyncio.sleep(0.01)
    assert (await claimed(batches)).name == VALIDATE


async def test_a_released_item_is_free_at_once(batches: Batches) -> None:
    await batches.create(batch_record())
    item = await claimed(batches)
    await batches.release(item)
    assert (await claimed(batches)).name == item.name


async def test_a_batch_is_cancelled_before_or_while_it_runs(batches: Batches) -> None:
    for number, early in enumerate((True, False)):
        name = f"batch_{number}"
        await batches.create(batch_record(name))
        item = await claimed(batches, name)
        if early:
            await batches.cancel(name)
            assert await batches.plan(item, 74, CHUNKS)
        else:
            assert await batches.plan(item, 74, CHUNKS[:1])
            await batches.cancel(name)
            chunk = await claimed(batches, name)
            assert chunk.status == "cancelling"
            assert await batches.done(chunk, 0, 64, late=False)
        await batches.cancel(name)  # again
        assert await batches.finish(await claimed(batches, name), None, None)
        assert (await batches.get(name)).status == "cancelled"
        with pytest.raises(Conflict):
            await batches.cancel(name)


async def test_an_invalid_input_fails_the_batch(batches: Batches) -> None:
    await batches.create(batch_record())
    errors = [LineError("invalid_url", "wrong", 3, "url")]
    assert await batches.fail(await claimed(batches), errors)
    record = await batches.get("batch_1")
    assert (record.status, record.errors) == ("failed", tuple(errors))
    assert await batches.claim("batch_1") is None


async def test_open_batches_are_bounded_per_tenant(backend: Backend) -> None:
    """One batch more than allowed is refused, and other tenants' batches are not found."""
    batches = batches_of(backend, most=2)
    await batches.create(batch_record("a"))
    await batches.create(batch_record("b", tenant="other"))
    with pytest.raises(TooManyBatches):
        await batches.create(batch_record("c"))
    assert [record.batch.id for record in await batches.list("default", after="", most=10)] == ["a"]
    for name in ("b", "other"):
        with pytest.raises(NotFound):
            await batches.get(name, "default")
        with pytest.raises(NotFound):
            await batches.list("default", after=name, most=1)

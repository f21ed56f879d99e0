"""Parts of a queue or of an answer that another program deletes: the request runs again, or ends soon."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.backend import Backend
from shared.protocol import RequestState
from shared.queue.interface import Room
from shared.redis import keys
from shared.settings import Settings
from shared.token_log.interface import Append
from tests.support.fakes import MODEL, answer, end_of, make_request, submit, token_event
from tests.support.worker_harness import GatedEngine, Harness, answer_tokens, expected_tokens, wait_for_tokens

LIMIT = 20
NAMES = keys.transport(MODEL)
COUNTERS, WAITING = NAMES[:2]
LANES, STREAMS = NAMES[3:6], NAMES[9:12]
ACCEPTED = NAMES[14]
LANE = keys.lane_prefix(MODEL)


async def delete_entry(backend: Backend, job_id: str) -> None:
    for stream in STREAMS:
        for entry, _ in await backend.redis.xrange(stream):
            await backend.redis.xdel(stream, entry)


async def delete_stream(backend: Backend, job_id: str) -> None:
    await backend.redis.delete(*STREAMS)


async def delete_log(backend: Backend, job_id: str) -> None:
    await backend.redis.delete(keys.log(job_id))


async def delete_state(backend: Backend, job_id: str) -> None:
    await backend.redis.delete(keys.state(job_id))


async def write_state(backend: Backend, job_id: str) -> None:
    await backend.redis.hset(keys.state(job_id), "epoch", "many")


async def retype_state(backend: Backend, job_id: str) -> None:
    await backend.redis.set(keys.state(job_id), "a string")


async def write_log(backend: Backend, job_id: str) -> None:
    await backend.redis.xadd(keys.log(job_id), {"e": "{"})  # its id is beyond all seqs


Damage = Callable[[Backend, str], Awaitable[None]]


@pytest.mark.parametrize(
    "damage", [delete_entry, delete_stream, delete_log, delete_state, write_state, retype_state, write_log]
)
async def test_a_running_request_that_is_damaged_ends(
    backend: Backend, settings: Settings, sweeping: asyncio.Task[None], damage: Damage
) -> None:
    """The reader of a running request gets an error if its entry, log or state is deleted or overwritten."""
    engine = GatedEngine(3)
    async with Harness(backend, settings).worker(engine), asyncio.timeout(LIMIT):
        request, neighbour = make_request(max_tokens=1000), make_request(max_tokens=4)
        await submit(backend, request)
        reading = asyncio.create_task(answer(backend, request.id))
        await wait_for_tokens(backend, request, 2)
        await damage(backend, request.id)
        engine.limit = 2 if damage in (delete_entry, delete_stream) else 100_000
        assert end_of(await reading) == ("failed", "request_lost")
        engine.limit = 100_000
        await submit(backend, neighbour)
        assert end_of(await answer(backend, neighbour.id)) == ("completed", None)


async def acknowledge_entry(backend: Backend, stream: str, held: dict[str, Any]) -> None:
    await backend.redis.xack(stream, keys.GROUP, held["message_id"])


async def delete_consumer(backend: Backend, stream: str, held: dict[str, Any]) -> None:
    await backend.redis.xgroup_delconsumer(stream, keys.GROUP, held["consumer"])


async def destroy_group(backend: Backend, stream: str, held: dict[str, Any]) -> None:
    await backend.redis.xgroup_destroy(stream, keys.GROUP)


@pytest.mark.parametrize("damage", [acknowledge_entry, delete_consumer, destroy_group])
async def test_a_request_whose_lease_is_deleted_runs_again(
    backend: Backend,
    settings: Settings,
    sweeping: asyncio.Task[None],
    damage: Callable[[Backend, str, dict[str, Any]], Awaitable[None]],
) -> None:
    """A held entry without a lease is claimed at once; the answer goes on after its logged tokens."""
    request, engine = make_request(max_tokens=20), GatedEngine(3)
    stream = keys.queue(MODEL, request.priority)
    async with Harness(backend, settings).worker(engine), asyncio.timeout(LIMIT):
        await submit(backend, request)
        reading = asyncio.create_task(answer(backend, request.id))
        await wait_for_tokens(backend, request, 2)
        [held] = await backend.redis.xpending_range(stream, keys.GROUP, "-", "+", 10)
        await damage(backend, stream, held)
        while (lease_epoch := await backend.redis.hget(keys.state(request.id), "epoch")) == b"1":
            await asyncio.sleep(0.01)
        engine.limit = 100_000
        assert answer_tokens(await reading) == expected_tokens(request)
        assert lease_epoch == b"2"
        while await backend.redis.xlen(stream):
            await asyncio.sleep(0.01)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer_api.background.sweeper.MIN_LOST_AGE_S", 0.1)


@pytest.fixture
async def reconciled(hasty: None, backend: Backend, sweeping: asyncio.Task[None]) -> None:
    """Start a sweeper, and wait until it has reconciled for the first time."""
    orphan = make_request()
    await backend.token_log.create(orphan)
    async with asyncio.timeout(LIMIT):
        while await backend.token_log.record(orphan.id) is not None:
            await asyncio.sleep(0.01)


async def delete_queue(backend: Backend) -> None:
    """Delete all keys of a model's queue."""
    await backend.redis.delete(*await backend.redis.execute_command("KEYS", f"hr:{{q:{MODEL}}}:*"))


async def test_running_requests_of_a_deleted_queue_end(
    backend: Backend, settings: Settings, reconciled: None
) -> None:
    running, following = make_request(), make_request()
    engine = GatedEngine(3)
    async with Harness(backend, settings).worker(engine), asyncio.timeout(LIMIT):
        await submit(backend, running)
        await wait_for_tokens(backend, running, 2)
        await delete_queue(backend)
        assert end_of(await answer(backend, running.id)) == ("failed", "request_lost")
        engine.limit = 100_000
        await submit(backend, following)
        assert end_of(await answer(backend, following.id)) == ("completed", None)


async def test_waiting_requests_of_a_deleted_queue_end(backend: Backend, reconciled: None) -> None:
    request = make_request()
    await submit(backend, request)
    reading = asyncio.create_task(answer(backend, request.id))
    async with backend.live.subscribe(keys.live_channel(request.id)), asyncio.timeout(LIMIT):
        await delete_queue(backend)
        assert end_of(await reading) == ("failed", "request_lost")


async def test_a_deleted_index_stops_nothing(backend: Backend, settings: Settings, reconciled: None) -> None:
    """If only the record of accepted requests is deleted, it is made anew, and guards them as before."""
    running, waiting = make_request(), make_request(tenant="other")
    engine = GatedEngine(3)
    async with Harness(backend, settings).worker(engine), asyncio.timeout(LIMIT):
        await submit(backend, running)
        await wait_for_tokens(backend, running, 2)
        for each in (waiting, make_request()):
            await submit(backend, each)
        await backend.redis.delete(ACCEPTED)
        while (place := await backend.redis.hget(ACCEPTED, running.id)) is None:
            await asyncio.sleep(0.01)
        await backend.redis.xdel(keys.queue(MODEL, running.priority), place.removeprefix(b"h:2:"))
        assert end_of(await answer(backend, running.id)) == ("failed", "request_lost")
        engine.limit = 100_000
        assert end_of(await answer(backend, waiting.id)) == ("completed", None)


@pytest.mark.parametrize("held", [False, True])
async def test_a_request_without_any_trace_in_the_queue_ends(
    backend: Backend, settings: Settings, reconciled: None, held: bool
) -> None:
    """Another program deleted the request from each key of the queue, one by one."""
    request = make_request()
    await submit(backend, request)
    if held:
        await backend.transport.pull(MODEL, "a", Room.all(1))
    reading = asyncio.create_task(answer(backend, request.id))
    async with backend.live.subscribe(keys.live_channel(request.id)), asyncio.timeout(LIMIT):
        await delete_entry(backend, request.id)
        await delete_from_lane(backend, request.id)
        await delete_waiting(backend, request.id)
        await backend.redis.hdel(ACCEPTED, request.id)
        assert end_of(await reading) == ("failed", "request_lost")


async def delete_waiting(backend: Backend, job_id: str) -> None:
    await backend.redis.hdel(WAITING, job_id)


async def delete_from_lane(backend: Backend, job_id: str) -> None:
    await backend.redis.zrem(f"{LANE}2:default", job_id)


async def delete_lane(backend: Backend, job_id: str) -> None:
    await backend.redis.delete(f"{LANE}2:default")


async def delete_lanes(backend: Backend, job_id: str) -> None:
    await backend.redis.delete(*LANES)


@pytest.mark.parametrize("damage", [delete_waiting, delete_from_lane, delete_lane, delete_lanes])
async def test_a_waiting_request_whose_place_is_deleted_ends(
    backend: Backend, settings: Settings, sweeping: asyncio.Task[None], damage: Damage
) -> None:
    request, neighbour = make_request(), make_request(tenant="other")
    await submit(backend, request)
    reading = asyncio.create_task(answer(backend, request.id))
    async with backend.live.subscribe(keys.live_channel(request.id)):
        await damage(backend, request.id)
        async with asyncio.timeout(LIMIT):
            assert end_of(await reading) == ("failed", "request_lost")
    await submit(backend, neighbour)
    async with Harness(backend, settings).worker(), asyncio.timeout(LIMIT):
        assert end_of(await answer(backend, neighbour.id)) == ("completed", None)
    assert (await backend.transport.depth(MODEL)).waiting == 0


async def test_deleted_counters_are_made_anew(
    backend: Backend, settings: Settings, sweeping: asyncio.Task[None]
) -> None:
    request = make_request()
    await submit(backend, request)
    await backend.redis.delete(COUNTERS)
    async with Harness(backend, settings).worker(), asyncio.timeout(LIMIT):
        assert end_of(await answer(backend, request.id)) == ("completed", None)


async def test_a_resumed_answer_with_a_gap_ends(backend: Backend) -> None:
    request = make_request()
    await submit(backend, request)
    [lease] = await backend.token_log.acquire([request.id], "a")
    assert lease is not None
    for seq in range(3):
        assert await backend.token_log.append([Append(lease, token_event(seq, "x"), 1)]) == [True]
    await backend.redis.xdel(keys.log(request.id), "2-0")
    async with asyncio.timeout(LIMIT):
        assert end_of(await answer(backend, request.id)) == ("failed", "request_lost")
    assert await backend.token_log.acquire([request.id], "b") == [None]
    record = await backend.token_log.record(request.id)
    assert record is not None
    assert (record.state, record.finish) == (RequestState.FAILED, "request_lost")

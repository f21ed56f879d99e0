"""The sweeper: it ends requests that no worker can end, in one process at a time."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from producer_api.background.sweeper import Sweeper
from shared.backend import Backend
from shared.errors import NotFound
from shared.protocol import RequestState, decode_event
from shared.queue.interface import Delivery, Room
from shared.redis import keys
from tests.support.fakes import MODEL, answer, make_request, submit
from tests.support.waiting import LIMIT_S


def sweeper(backend: Backend) -> Sweeper:
    async def models() -> list[str]:
        return [MODEL]

    return Sweeper(backend, models)


async def test_a_deadline_ends_a_request_without_a_worker(backend: Backend) -> None:
    now = await backend.token_log.now()
    waiting, held = make_request(deadline=now - 1), make_request(deadline=now - 1)
    patient = make_request(deadline=now + 60)
    await submit(backend, held)
    await backend.transport.pull(MODEL, "dead", Room.all(1))
    for request in (waiting, patient):
        await submit(backend, request)

    await sweeper(backend).sweep(tidy=True)

    for request in (waiting, held):
        [end] = await answer(backend, request.id)
        assert end.terminal is not None
        assert end.terminal.error is not None
        assert end.terminal.error.code == "deadline_exceeded"
    record = await backend.token_log.record(patient.id)
    assert record is not None
    assert record.state is RequestState.QUEUED
    depth = await backend.transport.depth(MODEL)
    assert (depth.waiting, depth.held) == (1, 1)  # another worker may claim the dead worker's entry
    assert await backend.transport.overdue(MODEL, 10) == []


async def test_requests_without_a_place_in_the_queue_end(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of such a log gets its end; requests that wait or run are left alone.

    A request that never ran is deleted in the same step: a killed sweeper leaves no end for its key to join.
    """

    async def killed(*_: object) -> None:
        raise AssertionError("a second step")

    if backend.server is not None:
        monkeypatch.setattr(backend.token_log, "forget", killed)
    orphan, half_run, waiting, held, ended = (make_request() for _ in range(5))
    young = make_request(created_at=await backend.token_log.now())
    for request in (half_run, held, ended, waiting):
        await submit(backend, request)
    [running, _, done] = (await backend.transport.pull(MODEL, "a", Room.all(3))).found
    assert isinstance(running, Delivery)
    assert isinstance(done, Delivery)
    await backend.token_log.acquire([half_run.id, held.id], "a")
    await backend.token_log.close(ended.id)
    await backend.transport.acknowledge([running.claim, done.claim])
    for request in (orphan, young):
        await backend.token_log.create(request)

    async with backend.live.subscribe(keys.live_channel(orphan.id)) as reader:
        await sweeper(backend).reconcile()
        heard = await reader.get(LIMIT_S)

    assert isinstance(heard, bytes)
    for end in (decode_event(heard), *await answer(backend, half_run.id)):
        assert end.terminal is not None
        assert end.terminal.error is not None
        assert end.terminal.error.code == "request_lost"
    assert await backend.token_log.record(orphan.id) is None  # its key may queue it again
    states = {}
    for request in (waiting, held, ended, young):
        record = await backend.token_log.record(request.id)
        assert record is not None
        states[request.id] = record.state
    assert states == {
        waiting.id: RequestState.QUEUED,
        held.id: RequestState.RUNNING,
        ended.id: RequestState.CANCELLED,
        young.id: RequestState.QUEUED,
    }


async def test_the_sweeper_reconciles_after_a_lost_connection(
    on_redis: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer_api.background.sweeper.MIN_LOST_AGE_S", 0.0)
    task = asyncio.create_task(sweeper(on_redis).run())
    for _ in range(2):
        orphan = make_request()
        await on_redis.token_log.create(orphan)
        with suppress(NotFound):  # forgotten before it could be read
            [end] = await asyncio.wait_for(answer(on_redis, orphan.id), LIMIT_S)
            assert end.terminal is not None
        await on_redis.redis.client_kill_filter(_type="pubsub")
    task.cancel()


async def test_another_sweeper_takes_over_a_released_lock(backend: Backend) -> None:
    first, second = sweeper(backend), sweeper(backend)
    assert [await s._leads() for s in (first, second, first)] == [True, False, True]
    await backend.locks.release("sweeper", first._holder)
    assert [await s._leads() for s in (first, second)] == [True, False]


async def test_a_running_sweeper_ends_an_overdue_request(backend: Backend) -> None:
    request = make_request(deadline=1.0)
    await submit(backend, request)
    task = asyncio.create_task(sweeper(backend).run())
    [end] = await asyncio.wait_for(answer(backend, request.id), LIMIT_S)
    assert end.terminal is not None
    task.cancel()

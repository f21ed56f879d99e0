"""The sweeper, the locks and the dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from producer_api.background.sweeper import Sweeper
from shared.backend import Backend
from shared.dead_letters.store import DeadLetter
from shared.errors import NotFound
from shared.protocol import ErrorInfo, RequestState, decode_event
from shared.queue.interface import Delivery, Room
from shared.redis import keys
from shared.settings import Settings
from tests.support.fakes import MODEL, answer, make_request, submit
from tests.support.waiting import LIMIT_S


def sweeper(backend: Backend) -> Sweeper:
    async def models() -> list[str]:
        return [MODEL]

    return Sweeper(backend, models)


async def test_a_request_ends_at_its_deadline_without_a_worker(backend: Backend) -> None:
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
    assert (depth.waiting, depth.held) == (1, 1)  # another worker will claim the dead worker's entry
    assert await backend.transport.overdue(MODEL, 10) == []


async def test_what_no_worker_will_ever_run_ends(backend: Backend) -> None:
    """A request without a place in the queue ends with an error; waiting and running ones continue."""
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


async def test_a_lost_connection_makes_the_sweeper_look_again(
    on_redis: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer_api.background.sweeper.SETTLED", 0.0)
    task = asyncio.create_task(sweeper(on_redis).run())
    for _ in range(2):
        orphan = make_request()
        await on_redis.token_log.create(orphan)
        with suppress(NotFound):  # forgotten before it could be read
            [end] = await asyncio.wait_for(answer(on_redis, orphan.id), LIMIT_S)
            assert end.terminal is not None
        await on_redis.redis.client_kill_filter(_type="pubsub")
    task.cancel()


async def test_one_sweeper_works_and_another_takes_over(backend: Backend) -> None:
    first, second = sweeper(backend), sweeper(backend)
    assert [await s._leads() for s in (first, second, first)] == [True, False, True]
    await backend.holds.release("sweeper", first._me)
    assert [await s._leads() for s in (first, second)] == [True, False]


async def test_a_running_sweeper_survives_what_it_meets(backend: Backend) -> None:
    request = make_request(deadline=1.0)
    await submit(backend, request)
    task = asyncio.create_task(sweeper(backend).run())
    [end] = await asyncio.wait_for(answer(backend, request.id), LIMIT_S)
    assert end.terminal is not None
    task.cancel()


async def test_a_lock_belongs_to_its_first_owner_until_it_expires(backend: Backend) -> None:
    holds = backend.holds
    assert await holds.hold("name", b"a", 60) == b"a"
    assert await holds.hold("name", b"b", 60) == b"a"
    await holds.release("name", b"b")
    assert await holds.hold("name", b"b", 60) == b"a"
    assert await holds.hold("name", b"a", 0.02) == b"a"
    async with asyncio.timeout(LIMIT_S):
        while await holds.hold("name", b"b", 60) != b"b":
            pass
    await holds.release("name", b"b")
    assert await holds.hold("name", b"c", 60) == b"c"


def letter(at: float) -> DeadLetter:
    return DeadLetter(make_request(), ErrorInfo("request_abandoned", "three workers were lost"), 3, at)


async def test_dead_letters_are_listed_newest_first_page_by_page(backend: Backend) -> None:
    letters = [letter(1000.0 + i) for i in range(5)]
    for each in (*letters, letters[4]):
        await backend.dead_letters.add(each)

    newest = letters[::-1]
    first = await backend.dead_letters.list(most=2)
    assert list(first) == newest[:2]
    assert list(await backend.dead_letters.list(after=first[-1].id, most=10)) == newest[2:]
    assert await backend.dead_letters.list(after="req_unknown") == []
    assert await backend.dead_letters.get(letters[0].id) == letters[0]

    assert await backend.dead_letters.remove([letters[0].id, "req_unknown"]) == 1
    assert await backend.dead_letters.get(letters[0].id) is None
    assert await backend.dead_letters.purge() == 4
    assert await backend.dead_letters.list() == []


@pytest.mark.parametrize("kind", ["redis", "memory"])
async def test_dead_letters_are_bounded_in_number_and_age(
    kind: str, settings: Settings, backend_of: Callable[[str, Settings], Awaitable[Backend]]
) -> None:
    backend = await backend_of(kind, settings.model_copy(update={"dead_letters": 2, "dead_letter_ttl": 10.0}))
    letters = [letter(at) for at in (1000.0, 1001.0, 1002.0, 1011.5)]
    for each in letters[:3]:
        await backend.dead_letters.add(each)
    assert list(await backend.dead_letters.list()) == [letters[2], letters[1]]
    await backend.dead_letters.add(letters[3])
    assert [each.at for each in await backend.dead_letters.list()] == [1011.5, 1002.0]

"""Worker on a real Redis server, with the scripted engine: every answer has the expected tokens."""

from __future__ import annotations

import asyncio

import pytest

from shared.backend import Backend
from shared.errors import EngineFailed
from shared.protocol import PriorityClass, RequestState
from shared.queue.interface import Pulled, Room
from tests.support.fakes import MODEL, answer, make_request, publish_garbage, submit
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import (
    GatedEngine,
    Harness,
    RecordingEngine,
    answer_tokens,
    expected_tokens,
    wait_for_tokens,
    wait_until,
)
from workers.engine.interface import EngineOutput
from workers.scripted_engine import ScriptedEngine

NEVER_S = 100 * LIMIT_S


async def test_every_request_gets_its_whole_answer_once(harness: Harness, backend: Backend) -> None:
    requests = [make_request(f"prompt {i}", max_tokens=1 + i % 7, n=1 + i % 3) for i in range(60)]
    async with harness.worker():
        for request in requests:
            await submit(backend, request)
        answers = await asyncio.gather(*(answer(backend, request.id) for request in requests))

    for request, events in zip(requests, answers, strict=True):
        for choice in range(request.params.n):
            assert answer_tokens(events, choice) == expected_tokens(request, choice)
        end = events[-1].terminal
        assert end is not None
        assert end.state is RequestState.COMPLETED
        assert end.usage.completion_tokens == request.params.n * (request.params.max_tokens or 0)
        assert end.usage.prompt_tokens == len(str(request.prompt))
    depth = await backend.transport.depth(MODEL)
    assert (depth.waiting, depth.held) == (0, 0)


@pytest.fixture
def no_polling(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make workers pull only after a notification, never by the clock."""
    monkeypatch.setattr("workers.puller.POLL_INTERVAL_S", NEVER_S)
    harness.settings = harness.settings.model_copy(update={"lease": NEVER_S})


@pytest.mark.usefixtures("no_polling")
async def test_a_worker_pulls_only_what_it_has_room_for(harness: Harness, backend: Backend) -> None:
    harness.settings = harness.settings.model_copy(update={"max_num_seqs": 2})
    engine = GatedEngine(limit=1)
    requests = [make_request(f"{i}") for i in range(5)]
    for request in requests:
        await submit(backend, request)
    async with harness.worker(engine):
        await wait_for_tokens(backend, requests[0], 1)
        depth = await backend.transport.depth(MODEL)
        assert (depth.waiting, depth.held) == (3, 2)
        engine.limit = 1000
        async with asyncio.timeout(LIMIT_S):  # the others are pulled when room is made, without a notification
            for request in requests:
                assert answer_tokens(await answer(backend, request.id)) == expected_tokens(request)


@pytest.mark.usefixtures("no_polling")
async def test_a_worker_pulls_only_if_requests_may_wait(
    harness: Harness, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given one request after another, expect about one pull for each, and none after an end."""
    pulls = 0
    pull = type(backend.transport).pull

    async def counted(transport: object, model: str, worker: str, room: Room) -> Pulled:
        nonlocal pulls
        pulls += 1
        return await pull(transport, model, worker, room)  # type: ignore[arg-type]  # any implementation

    monkeypatch.setattr(type(backend.transport), "pull", counted)
    async with harness.worker():
        for number in range(20):
            request = make_request(f"{number}", max_tokens=1)
            await submit(backend, request)
            await answer(backend, request.id)
    assert 20 <= pulls <= 30


@pytest.mark.usefixtures("no_polling")
async def test_two_idle_workers_share_the_load(
    harness: Harness, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given slow answers, expect half of 16 requests on each worker, whichever pulls first."""
    monkeypatch.setattr("shared.queue.interface.SPARE_S", 2 * LIMIT_S)
    pulled: set[str] = set()
    awake = asyncio.Event()
    awake.set()
    pull = type(backend.transport).pull

    async def delayed_pull(transport: object, model: str, worker: str, room: Room) -> Pulled:
        await awake.wait()
        found = await pull(transport, model, worker, room)  # type: ignore[arg-type]  # any implementation
        pulled.add(worker)
        return found

    monkeypatch.setattr(type(backend.transport), "pull", delayed_pull)
    engines = [GatedEngine(limit=0), GatedEngine(limit=0)]
    requests = [make_request(f"{i}") for i in range(16)]
    async with harness.worker(engines[0], "a"), harness.worker(engines[1], "b"):
        await wait_until(lambda: pulled == {"a", "b"})
        awake.clear()
        for request in requests:
            await submit(backend, request)
        awake.set()
        await wait_until(lambda: sum(engine.stats().running for engine in engines) == 16)
        assert [engine.stats().running for engine in engines] == [8, 8]
        for engine in engines:
            engine.limit = 1000
        for request in requests:
            assert answer_tokens(await answer(backend, request.id)) == expected_tokens(request)


@pytest.mark.usefixtures("no_polling")
async def test_two_idle_workers_share_what_a_lost_one_held(
    harness: Harness, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.queue.interface.SPARE_S", 2 * LIMIT_S)
    requests = [make_request(f"{i}") for i in range(16)]
    for request in requests:
        await submit(backend, request)
    held = (await backend.transport.pull(MODEL, "lost", Room.all(16))).found
    pulled: set[str] = set()
    pull = type(backend.transport).pull

    async def noted_pull(transport: object, model: str, worker: str, room: Room) -> Pulled:
        found = await pull(transport, model, worker, room)  # type: ignore[arg-type]  # any implementation
        pulled.add(worker)
        return found

    monkeypatch.setattr(type(backend.transport), "pull", noted_pull)
    engines = [GatedEngine(limit=0), GatedEngine(limit=0)]
    async with harness.worker(engines[0], "a"), harness.worker(engines[1], "b"):
        await wait_until(lambda: pulled == {"a", "b"})
        await backend.transport.release(MODEL, "lost", [delivery.claim for delivery in held])
        await wait_until(lambda: sum(engine.stats().running for engine in engines) == 16)
        assert [engine.stats().running for engine in engines] == [8, 8]
        for engine in engines:
            engine.limit = 1000
        for request in requests:
            assert answer_tokens(await answer(backend, request.id)) == expected_tokens(request)


@pytest.mark.usefixtures("no_polling")
async def test_requests_that_found_no_room_are_pulled_later(harness: Harness, backend: Backend) -> None:
    harness.settings = harness.settings.model_copy(update={"max_num_seqs": 1})
    engine = GatedEngine(limit=1)
    first, later = make_request("first", max_tokens=2), make_request("later", max_tokens=1)
    async with harness.worker(engine):
        await submit(backend, first)
        await wait_for_tokens(backend, first, 1)
        await submit(backend, later)
        engine.limit = 1000
        async with asyncio.timeout(LIMIT_S):
            assert answer_tokens(await answer(backend, later.id)) == expected_tokens(later)


async def test_a_cancelled_request_leaves_the_engine_and_the_queue(harness: Harness, backend: Backend) -> None:
    engine = GatedEngine(limit=2)
    request = make_request(max_tokens=1000)
    await submit(backend, request)
    async with harness.worker(engine):
        await wait_for_tokens(backend, request, 2)
        await backend.token_log.close(request.id)
        await wait_until(lambda: engine.aborted == [f"{request.id}/1"])
        assert not engine.has_work()
        events = await answer(backend, request.id)
    assert events[-1].terminal is not None
    assert events[-1].terminal.state is RequestState.CANCELLED
    assert answer_tokens(events) == expected_tokens(request)[:2]
    depth = await backend.transport.depth(MODEL)
    assert (depth.waiting, depth.held) == (0, 0)


async def test_a_request_cancelled_while_queued_is_never_run(harness: Harness, backend: Backend) -> None:
    request, marker = make_request(), make_request()
    await submit(backend, request)
    await backend.token_log.close(request.id)
    await submit(backend, marker)
    async with harness.worker():
        await answer(backend, marker.id)
        [end] = await answer(backend, request.id)
    assert end.terminal is not None
    assert end.terminal.state is RequestState.CANCELLED


async def test_a_request_refused_by_the_engine_ends_with_its_error(harness: Harness, backend: Backend) -> None:
    request = make_request("x" * 8192, max_tokens=9)
    await submit(backend, request)
    async with harness.worker():
        [end] = await answer(backend, request.id)
    assert end.terminal is not None
    assert end.terminal.error is not None
    assert end.terminal.error.code == "context_length_exceeded"
    assert "8192 tokens" in end.terminal.error.message
    assert "max_tokens is 9" in end.terminal.error.message


async def test_an_invalid_message_is_dropped(harness: Harness, backend: Backend) -> None:
    await publish_garbage(backend, b"{")
    request = make_request()
    await submit(backend, request)
    async with harness.worker():
        assert answer_tokens(await answer(backend, request.id)) == expected_tokens(request)
    depth = await backend.transport.depth(MODEL)
    assert (depth.waiting, depth.held) == (0, 0)


async def test_the_engine_gets_tenant_priority_and_salt(harness: Harness, backend: Backend) -> None:
    engine = RecordingEngine()
    requests = [make_request(priority=priority, tenant=f"t{i // 2}") for i, priority in enumerate(PriorityClass)]
    async with harness.worker(engine):
        for request in requests:
            await submit(backend, request)
            await answer(backend, request.id)
    assert [request.priority for request in engine.requests] == list(PriorityClass)
    assert [request.tenant for request in engine.requests] == ["t0", "t0", "t1"]
    first, again, other = (request.prefix_salt for request in engine.requests)
    assert first == again != other
    assert b"t0" not in first


async def test_a_worker_registers_and_leaves(harness: Harness, backend: Backend) -> None:
    async with harness.worker():
        request = make_request()
        await submit(backend, request)
        await answer(backend, request.id)
        [info] = await backend.registry.workers()
        assert (info.id, info.state, info.max_model_len) == ("a", "ready", 8192)
        assert [model.name for model in await backend.registry.models()] == [MODEL]
    assert await backend.registry.workers() == []
    sample = harness.metrics.registry.get_sample_value
    labels = {"model": MODEL, "class": "standard", "outcome": "completed"}
    assert sample("headrace_worker_requests_total", labels) == 1
    assert sample("headrace_worker_tokens_total", {"model": MODEL, "class": "standard", "kind": "completion"}) == 8


async def test_a_running_request_ends_at_its_deadline(harness: Harness, backend: Backend) -> None:
    engine = GatedEngine(limit=2)
    request = make_request(max_tokens=1000, deadline=await backend.token_log.now() + 1)
    await submit(backend, request)
    async with harness.worker(engine):
        events = await answer(backend, request.id)

    assert answer_tokens(events) == expected_tokens(request)[:2]
    end = events[-1].terminal
    assert end is not None
    assert end.error is not None
    assert (end.error.code, end.usage.completion_tokens) == ("deadline_exceeded", 2)
    assert engine.aborted == [f"{request.id}/1"]


async def test_an_overdue_request_is_never_run(harness: Harness, backend: Backend) -> None:
    engine = GatedEngine(limit=1000)
    late, marker = make_request("late", deadline=await backend.token_log.now() - 1), make_request()
    await submit(backend, late)
    await submit(backend, marker)
    async with harness.worker(engine):
        await answer(backend, marker.id)
        [end] = await answer(backend, late.id)

    assert end.terminal is not None
    assert end.terminal.error is not None
    assert (end.terminal.error.code, end.terminal.usage.completion_tokens) == ("deadline_exceeded", 0)
    assert engine.limit == 1000 - 8


class FailingEngine(ScriptedEngine):
    """Engine that fails each request after its first token."""

    def step(self) -> list[EngineOutput]:
        outputs = super().step()
        for output in outputs:
            self.abort(output.job_id)
        return [EngineOutput(o.job_id, o.tokens, True, EngineFailed("NaN")) for o in outputs]


async def test_a_request_that_the_engine_fails_is_set_aside(harness: Harness, backend: Backend) -> None:
    request = make_request()
    await submit(backend, request)
    async with harness.worker(FailingEngine()):
        events = await answer(backend, request.id)

    assert events[-1].terminal is not None
    assert events[-1].terminal.error is not None
    [letter] = await backend.dead_letters.list()
    assert (letter.request, letter.reason) == (request, events[-1].terminal.error)


async def test_urgent_requests_are_pulled_beside_batch_work(harness: Harness, backend: Backend) -> None:
    harness.settings = harness.settings.model_copy(update={"max_num_seqs": 4})
    engine = GatedEngine(limit=0)
    batch = [make_request(f"b{i}", priority=PriorityClass.BATCH) for i in range(6)]
    urgent = [make_request(f"i{i}", priority=PriorityClass.INTERACTIVE) for i in range(6)]
    for request in batch:
        await submit(backend, request)
    async with harness.worker(engine):
        await wait_until(lambda: engine.stats().running == 4)
        for request in urgent:
            await submit(backend, request)
        await wait_until(lambda: engine.stats().running == 7)  # one seat stays with batch work
        assert {run.request.priority for run in list(engine._runs.values())[4:]} == {PriorityClass.INTERACTIVE}
        engine.limit = 1000
        for request in batch + urgent:
            assert answer_tokens(await answer(backend, request.id)) == expected_tokens(request)

"""A whole worker, on a real server and the scripted engine: every answer is the one that the rule foretells."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

import msgspec
import pytest

from shared.backend import Backend
from shared.errors import EngineFailed
from shared.protocol import PriorityClass, Request, RequestState, Structured, Token, TokenEvent, Tools
from shared.queue.interface import Pulled, Room
from shared.token_log.interface import Append
from tests.support.fakes import MODEL, answer, lapse, make_request, publish_garbage, submit
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import GatedEngine, Harness, foretold, tokens_of, told, until
from workers.engine.interface import Constraint, EngineOutput, EngineRequest
from workers.scripted_engine import ScriptedEngine, text_of

NEVER_S = 100 * LIMIT_S


async def test_every_request_gets_its_whole_answer_once(harness: Harness, backend: Backend) -> None:
    requests = [make_request(f"prompt {i}", max_tokens=1 + i % 7, n=1 + i % 3) for i in range(60)]
    async with harness.worker():
        for request in requests:
            await submit(backend, request)
        answers = await asyncio.gather(*(answer(backend, request.id) for request in requests))

    for request, events in zip(requests, answers, strict=True):
        for choice in range(request.params.n):
            assert told(events, choice) == foretold(request, choice)
        end = events[-1].terminal
        assert end is not None
        assert end.state is RequestState.COMPLETED
        assert end.usage.completion_tokens == request.params.n * (request.params.max_tokens or 0)
        assert end.usage.prompt_tokens == len(str(request.prompt))
    depth = await backend.transport.depth(MODEL)
    assert (depth.waiting, depth.held) == (0, 0)


@pytest.fixture
def no_clock(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers look at the queue only when they have cause to."""
    monkeypatch.setattr("workers.puller.POLL_INTERVAL_S", NEVER_S)
    harness.settings = harness.settings.model_copy(update={"lease": NEVER_S})


@pytest.mark.usefixtures("no_clock")
async def test_a_worker_pulls_no_more_than_it_has_room_for(harness: Harness, backend: Backend) -> None:
    harness.settings = harness.settings.model_copy(update={"max_num_seqs": 2})
    engine = GatedEngine(limit=1)
    requests = [make_request(f"{i}") for i in range(5)]
    for request in requests:
        await submit(backend, request)
    async with harness.worker(engine):
        await tokens_of(backend, requests[0], 1)
        depth = await backend.transport.depth(MODEL)
        assert (depth.waiting, depth.held) == (3, 2)
        engine.limit = 1000
        async with asyncio.timeout(LIMIT_S):  # the rest is pulled when there is room, though nobody tells of it
            for request in requests:
                assert told(await answer(backend, request.id)) == foretold(request)


@pytest.mark.usefixtures("no_clock")
async def test_a_worker_asks_the_queue_only_where_something_may_wait(
    harness: Harness, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given requests one after the other, expect about one pull each: none after an end, nor twice."""
    pulls = 0
    pull = type(backend.transport).pull

    async def counted(transport: object, model: str, worker: str, room: Room) -> Pulled:
        nonlocal pulls
        pulls += 1
        return await pull(transport, model, worker, room)  # type: ignore[arg-type]  # whichever it is

    monkeypatch.setattr(type(backend.transport), "pull", counted)
    async with harness.worker():
        for number in range(20):
            request = make_request(f"{number}", max_tokens=1)
            await submit(backend, request)
            await answer(backend, request.id)
    assert 20 <= pulls <= 30


@pytest.mark.usefixtures("no_clock")
async def test_two_idle_workers_share_the_load(
    harness: Harness, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given answers that take long, half of 16 requests run on each worker, whichever looks first."""
    monkeypatch.setattr("shared.queue.interface.SPARE_S", 2 * LIMIT_S)
    pulled: set[str] = set()
    awake = asyncio.Event()
    awake.set()
    pull = type(backend.transport).pull

    async def held_up(transport: object, model: str, worker: str, room: Room) -> Pulled:
        await awake.wait()
        found = await pull(transport, model, worker, room)  # type: ignore[arg-type]  # whichever it is
        pulled.add(worker)
        return found

    monkeypatch.setattr(type(backend.transport), "pull", held_up)
    engines = [GatedEngine(limit=0), GatedEngine(limit=0)]
    requests = [make_request(f"{i}") for i in range(16)]
    async with harness.worker(engines[0], "a"), harness.worker(engines[1], "b"):
        await until(lambda: pulled == {"a", "b"})
        awake.clear()
        for request in requests:
            await submit(backend, request)
        awake.set()
        await until(lambda: sum(engine.stats().running for engine in engines) == 16)
        assert [engine.stats().running for engine in engines] == [8, 8]
        for engine in engines:
            engine.limit = 1000
        for request in requests:
            assert told(await answer(backend, request.id)) == foretold(request)


@pytest.mark.usefixtures("no_clock")
async def test_what_came_while_there_was_no_room_is_pulled_with_it(harness: Harness, backend: Backend) -> None:
    harness.settings = harness.settings.model_copy(update={"max_num_seqs": 1})
    engine = GatedEngine(limit=1)
    first, later = make_request("first", max_tokens=2), make_request("later", max_tokens=1)
    async with harness.worker(engine):
        await submit(backend, first)
        await tokens_of(backend, first, 1)
        await submit(backend, later)
        engine.limit = 1000
        async with asyncio.timeout(LIMIT_S):
            assert told(await answer(backend, later.id)) == foretold(later)


async def test_a_cancelled_request_leaves_the_engine_and_the_queue(harness: Harness, backend: Backend) -> None:
    engine = GatedEngine(limit=2)
    request = make_request(max_tokens=1000)
    await submit(backend, request)
    async with harness.worker(engine):
        await tokens_of(backend, request, 2)
        await backend.token_log.close(request.id)
        await until(lambda: engine.aborted == [f"{request.id}/1"])
        assert not engine.has_work()
        events = await answer(backend, request.id)
    assert events[-1].terminal is not None
    assert events[-1].terminal.state is RequestState.CANCELLED
    assert told(events) == foretold(request)[:2]
    depth = await backend.transport.depth(MODEL)
    assert (depth.waiting, depth.held) == (0, 0)


async def test_a_request_cancelled_while_it_waited_is_never_run(harness: Harness, backend: Backend) -> None:
    request, marker = make_request(), make_request()
    await submit(backend, request)
    await backend.token_log.close(request.id)
    await submit(backend, marker)
    async with harness.worker():
        await answer(backend, marker.id)
        [end] = await answer(backend, request.id)
    assert end.terminal is not None
    assert end.terminal.state is RequestState.CANCELLED


async def test_what_the_engine_refuses_ends_with_its_reason(harness: Harness, backend: Backend) -> None:
    request = make_request("long", max_tokens=9000)
    await submit(backend, request)
    async with harness.worker():
        [end] = await answer(backend, request.id)
    assert end.terminal is not None
    assert end.terminal.error is not None
    assert end.terminal.error.code == "context_length_exceeded"
    assert "8192" in end.terminal.error.message


async def test_a_message_that_is_no_request_is_dropped_and_others_go_on(harness: Harness, backend: Backend) -> None:
    await publish_garbage(backend, b"{")
    request = make_request()
    await submit(backend, request)
    async with harness.worker():
        assert told(await answer(backend, request.id)) == foretold(request)
    depth = await backend.transport.depth(MODEL)
    assert (depth.waiting, depth.held) == (0, 0)


class ToldEngine(ScriptedEngine):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[EngineRequest] = []

    def add(self, request: EngineRequest) -> None:
        self.told.append(request)
        super().add(request)


async def test_the_engine_is_told_whose_a_request_is_and_how_urgent(harness: Harness, backend: Backend) -> None:
    engine = ToldEngine()
    requests = [make_request(priority=priority, tenant=f"t{i // 2}") for i, priority in enumerate(PriorityClass)]
    async with harness.worker(engine):
        for request in requests:
            await submit(backend, request)
            await answer(backend, request.id)
    assert [told.priority for told in engine.told] == list(PriorityClass)
    assert [told.tenant for told in engine.told] == ["t0", "t0", "t1"]
    first, again, other = (told.prefix_salt for told in engine.told)
    assert first == again != other
    assert b"t0" not in first


async def test_heartbeats_tell_the_load_and_a_leaving_worker_is_off_the_list(
    harness: Harness, backend: Backend
) -> None:
    async with harness.worker():
        request = make_request()
        await submit(backend, request)
        await answer(backend, request.id)
        [info] = await backend.registry.workers()
        assert (info.id, info.state, info.max_model_len) == ("a", "ready", 8192)
        assert [model.name for model in await backend.registry.models()] == [MODEL]
    assert await backend.registry.workers() == []
    sample = harness.metrics.registry.get_sample_value
    labels = {"model": MODEL, "outcome": "completed"}
    assert sample("headrace_worker_requests_total", labels) == 1
    assert sample("headrace_worker_tokens_total", {"model": MODEL, "kind": "completion"}) == 8


async def test_a_running_request_stops_at_its_deadline_and_says_so(harness: Harness, backend: Backend) -> None:
    engine = GatedEngine(limit=2)
    request = make_request(max_tokens=1000, deadline=await backend.token_log.now() + 1)
    await submit(backend, request)
    async with harness.worker(engine):
        events = await answer(backend, request.id)

    assert told(events) == foretold(request)[:2]
    end = events[-1].terminal
    assert end is not None
    assert end.error is not None
    assert (end.error.code, end.usage.completion_tokens) == ("deadline_exceeded", 2)
    assert engine.aborted == [f"{request.id}/1"]


async def test_a_request_whose_time_is_over_is_never_run(harness: Harness, backend: Backend) -> None:
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
    """Gives up each request after its first token."""

    def step(self) -> list[EngineOutput]:
        outputs = super().step()
        for output in outputs:
            self.abort(output.job_id)
        return [EngineOutput(o.job_id, o.tokens, True, EngineFailed("NaN")) for o in outputs]


async def test_what_the_engine_could_not_compute_is_set_aside(harness: Harness, backend: Backend) -> None:
    request = make_request()
    await submit(backend, request)
    async with harness.worker(FailingEngine()):
        events = await answer(backend, request.id)

    assert events[-1].terminal is not None
    assert events[-1].terminal.error is not None
    [letter] = await backend.dead_letters.list()
    assert (letter.request, letter.reason) == (request, events[-1].terminal.error)


async def test_an_urgent_request_is_taken_although_batch_work_has_all_seats(
    harness: Harness, backend: Backend
) -> None:
    harness.settings = harness.settings.model_copy(update={"max_num_seqs": 4})
    engine = GatedEngine(limit=0)
    batch = [make_request(f"b{i}", priority=PriorityClass.BATCH) for i in range(6)]
    urgent = [make_request(f"i{i}", priority=PriorityClass.INTERACTIVE) for i in range(6)]
    for request in batch:
        await submit(backend, request)
    async with harness.worker(engine):
        await until(lambda: engine.stats().running == 4)
        for request in urgent:
            await submit(backend, request)
        await until(lambda: engine.stats().running == 7)  # one seat stays with the batch class
        assert {run.request.priority for run in list(engine._runs.values())[4:]} == {PriorityClass.INTERACTIVE}
        engine.limit = 1000
        for request in batch + urgent:
            assert told(await answer(backend, request.id)) == foretold(request)


class Compiler:
    """Compiles nothing until it is told to; `proven` of each call."""

    def __init__(self) -> None:
        self.started: list[Future[Constraint]] = []
        self.proven: list[bool] = []

    def start(self, asked: Structured | Tools, *, proven: bool = False) -> Future[Constraint]:
        self.started.append(Future())
        self.proven.append(proven)
        return self.started[-1]


def held_to(request: Request) -> Request:
    params = msgspec.structs.replace(request.params, structured_outputs=Structured(regex="a"))
    return msgspec.structs.replace(request, params=params)


async def test_a_slow_grammar_delays_no_other_request(harness: Harness, backend: Backend) -> None:
    engine = ToldEngine()
    engine.constraints = Compiler()
    slow, other = held_to(make_request("slow")), make_request("other")
    async with harness.worker(engine):
        await submit(backend, slow)
        await until(lambda: len(engine.constraints.started) == 1)
        await submit(backend, other)
        assert told(await answer(backend, other.id)) == foretold(other)
        engine.constraints.started[0].set_result(Constraint(lambda: None))
        assert told(await answer(backend, slow.id)) == foretold(slow)
    assert engine.constraints.proven == [False]


async def test_a_resumed_answers_grammar_counts_as_proven(harness: Harness, backend: Backend) -> None:
    """Given two requests of a lost worker, then only the one whose log has tokens skips the compiler's limits."""
    begun, new = held_to(make_request("begun")), held_to(make_request("new"))
    for request in (begun, new):
        await submit(backend, request)
    await backend.transport.pull(MODEL, "dead", Room.all(2))
    await lapse(backend)
    [lease, _] = await backend.token_log.acquire([begun.id, new.id], "dead")
    assert lease is not None
    token = foretold(begun)[0]
    await backend.token_log.append([Append(lease, TokenEvent(0, (Token(0, token, text_of(token)),)), 5)])
    await lapse(backend)
    engine = ToldEngine()
    engine.constraints = compiler = Compiler()
    async with harness.worker(engine):
        await until(lambda: len(compiler.started) == 2)
        for started in compiler.started:
            started.set_result(Constraint(lambda: None))
        for request in (begun, new):
            assert told(await answer(backend, request.id)) == foretold(request)
    assert sorted(compiler.proven) == [False, True]


async def test_what_is_cancelled_while_its_grammar_is_compiled_is_not_run(
    harness: Harness, backend: Backend
) -> None:
    engine = ToldEngine()
    engine.constraints = compiler = Compiler()
    request = held_to(make_request())
    async with harness.worker(engine) as worker:
        await submit(backend, request)
        await until(lambda: len(compiler.started) == 1)
        await backend.token_log.close(request.id)
        await until(lambda: not worker._by_job)
        compiler.started[0].set_result(Constraint(lambda: pytest.fail("nothing follows it")))
        later = make_request()
        await submit(backend, later)
        await answer(backend, later.id)
    assert [told.id for told in engine.told] == [f"{later.id}/1"]


async def test_an_engine_without_grammars_refuses(harness: Harness, backend: Backend) -> None:
    request = held_to(make_request())
    async with harness.worker():
        await submit(backend, request)
        [end] = [event.terminal for event in await answer(backend, request.id)]
    assert end is not None
    assert end.error is not None
    assert end.error.param == "structured_outputs"

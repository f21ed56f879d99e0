"""Workers that die, are fenced, break or drain: their requests go on elsewhere, to the answer of the rule."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from shared.backend import Backend
from shared.protocol import FinishReason, Message, Request, Token, TokenEvent
from shared.queue.interface import Room
from shared.redis import keys
from shared.token_log.interface import Append
from tests.support.checkpoints import CONFIGS, byte_tokenizer
from tests.support.fakes import MODEL, answer, lapse, make_request, submit
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import GatedEngine, Harness, foretold, tokens_of, told, until
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.text.tokenizer import Tokenizer
from workers.scripted_engine import ScriptedEngine, expected, text_of


async def taken(backend: Backend, count: int = 1) -> None:
    """Have requests taken by a worker that is not heard of again."""
    assert len((await backend.transport.pull(MODEL, "dead", Room.all(count))).found) == count
    await lapse(backend)


async def test_an_answer_goes_on_where_a_dead_worker_left_it(harness: Harness, backend: Backend) -> None:
    request = make_request("take me over", max_tokens=9, n=2)
    await submit(backend, request)
    await taken(backend)
    [lease] = await backend.token_log.acquire([request.id], "dead")
    assert lease is not None
    said = [Token(c, foretold(request, c)[p], text_of(foretold(request, c)[p])) for p in range(3) for c in range(2)]
    await backend.token_log.append([Append(lease, TokenEvent(0, tuple(said[:5])), 12)])

    async with harness.worker():
        events = await answer(backend, request.id)

    assert [told(events, c) for c in range(2)] == [foretold(request, c) for c in range(2)]
    end = events[-1].terminal
    assert end is not None
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (12, 18)


CLOCK = "{{ strftime_now('%f') }}{% for m in messages %}{{ m.content }}{% endfor %}"  # another prompt each time


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A real chat template that tells the time."""
    folder = tmp_path_factory.mktemp("clocked")
    made = byte_tokenizer()
    made.chat_template = CLOCK
    made.save_pretrained(folder)
    CONFIGS["llama"].save_pretrained(folder)
    return Tokenizer(folder)


class Recording(GatedEngine):
    """Keeps what it is asked."""

    def __init__(self, tokenizer: Tokenizer, limit: int) -> None:
        super().__init__(limit)
        self.tokenizer = tokenizer
        self.asked: list[EngineRequest] = []

    def add(self, request: EngineRequest) -> None:
        self.asked.append(request)
        super().add(request)


async def test_a_takeover_goes_on_with_the_prompt_that_was_rendered_first(
    harness: Harness, backend: Backend, clocked: Tokenizer
) -> None:
    """Given a template that tells the time, and a worker lost in the midst, Expect the first run's ids again."""
    chat = (Message("user", "what time is it?"),)
    assert clocked.encode_chat(chat) != clocked.encode_chat(chat)
    harness.settings = harness.settings.model_copy(update={"grace": 0.05})
    request = msgspec.structs.replace(make_request(max_tokens=9), prompt=None, messages=chat)
    first, second = Recording(clocked, 3), Recording(clocked, 1000)
    await submit(backend, request)
    async with harness.worker(first, "a"):
        await tokens_of(backend, request, 3)
    async with harness.worker(second, "b"):
        events = await answer(backend, request.id)
    [asked], [again] = first.asked, second.asked
    assert again.prompt == asked.prompt
    assert [len(ids) for ids in again.resumed] == [3]
    assert told(events) == [expected(asked.prompt, 0, position) for position in range(9)]


async def test_an_echo_is_told_once(harness: Harness, backend: Backend) -> None:
    """Given a request that asks for its prompt, if its worker dies before or after it, Expect it told once."""
    for written in (0, 2):
        request = make_request(f"echo {written}", max_tokens=4)
        request = msgspec.structs.replace(request, params=msgspec.structs.replace(request.params, echo=True))
        await submit(backend, request)
        await taken(backend)
        [lease] = await backend.token_log.acquire([request.id], "dead")
        assert lease is not None
        prompt = tuple(Token(0, ord(letter), letter) for letter in f"echo {written}")
        if written:
            said = tuple(Token(0, token, text_of(token)) for token in foretold(request)[:written])
            await backend.token_log.append([Append(lease, TokenEvent(0, said, None, prompt), len(prompt))])
        async with harness.worker():
            events = await answer(backend, request.id)
        assert told(events) == foretold(request)
        assert [event.prompt for event in events if event.prompt] == [prompt]
        assert events[0].prompt == prompt


async def test_an_answer_that_only_lacks_its_end_gets_it(harness: Harness, backend: Backend) -> None:
    request = make_request(max_tokens=1)
    await submit(backend, request)
    [delivery] = (await backend.transport.pull(MODEL, "dead", Room.all(1))).found
    [lease] = await backend.token_log.acquire([request.id], "dead")
    assert lease is not None
    last = TokenEvent(0, (Token(0, 5, "x", FinishReason.LENGTH),))
    await backend.token_log.append([Append(lease, last, 5)])
    await backend.transport.release(MODEL, "dead", [delivery.claim])

    async with harness.worker():
        events = await answer(backend, request.id)

    assert (told(events), events[-1].seq) == ([5], 1)


async def test_a_request_that_lost_too_many_workers_is_set_aside(harness: Harness, backend: Backend) -> None:
    harness.settings = harness.settings.model_copy(update={"max_attempts": 1})
    request = make_request()
    await submit(backend, request)
    await taken(backend)
    await backend.token_log.acquire([request.id], "dead", [1])

    async with harness.worker():
        [end] = await answer(backend, request.id)

    assert end.terminal is not None
    assert end.terminal.error is not None
    assert end.terminal.error.code == "request_abandoned"
    [letter] = await backend.dead_letters.list()
    assert (letter.request, letter.reason, letter.attempts) == (request, end.terminal.error, 1)


@pytest.mark.parametrize("alone", [True, False])
async def test_a_request_that_was_alone_twice_gets_no_third_worker(
    harness: Harness, backend: Backend, alone: bool
) -> None:
    """Given two workers lost with a request, Expect it set aside if they ran nothing else, and answered if not."""
    request = make_request()
    await submit(backend, request)
    await taken(backend)
    await backend.token_log.acquire([request.id], "dead-1", [1], alone=alone)
    await lapse(backend)
    assert len(await backend.transport.claim(MODEL, "dead-2", 1)) == 1
    await backend.token_log.acquire([request.id], "dead-2", [2], alone=alone)
    await lapse(backend)

    async with harness.worker():
        events = await answer(backend, request.id)

    end, letters = events[-1].terminal, await backend.dead_letters.list()
    assert end is not None
    if alone:
        assert end.error is not None
        assert end.error.code == "request_abandoned"
        assert [(letter.id, letter.attempts) for letter in letters] == [(request.id, 2)]
    else:
        assert (told(events), letters) == (foretold(request), [])


async def alone(backend: Backend, request: Request, expected: bytes) -> None:
    """Until the record says so."""
    async with asyncio.timeout(LIMIT_S):
        while await backend.redis.hget(keys.state(request.id), "alone") != expected:
            await asyncio.sleep(0)


async def test_a_request_is_alone_until_another_joins(harness: Harness, backend: Backend) -> None:
    first, second = make_request("first"), make_request("second")
    engine = GatedEngine(limit=0)
    async with harness.worker(engine):
        await submit(backend, first)
        await alone(backend, first, b"1")
        await submit(backend, second)
        await until(lambda: engine.stats().running == 2)
        for request in (first, second):
            assert await backend.redis.hget(keys.state(request.id), "alone") == b"0"
        engine.limit = 1000


async def test_the_last_one_left_is_alone(harness: Harness, backend: Backend) -> None:
    """Given two requests taken together, If one ends, Expect the other to be recorded as alone at a heartbeat."""
    harness.settings = harness.settings.model_copy(update={"lease": 1})  # heartbeats come three times a lease
    short, long = make_request("short", max_tokens=1), make_request("long", max_tokens=20)
    engine = GatedEngine(limit=0)
    await submit(backend, short)
    await submit(backend, long)
    async with harness.worker(engine):
        await until(lambda: engine.stats().running == 2)
        assert await backend.redis.hget(keys.state(long.id), "alone") == b"0"
        engine.limit = 1
        await alone(backend, long, b"1")
        engine.limit = 1000


async def test_a_draining_worker_hands_on_what_it_cannot_finish(harness: Harness, backend: Backend) -> None:
    harness.settings = harness.settings.model_copy(update={"grace": 0.05, "lease": 300})
    backend_with_long_lease = Backend.open(harness.settings)
    harness.backend = backend_with_long_lease
    request = make_request(max_tokens=20)
    await submit(backend, request)
    async with harness.worker(GatedEngine(limit=3), "a"):
        await tokens_of(backend, request, 3)
    async with harness.worker(name="b"):
        events = await answer(backend, request.id)
    assert told(events) == foretold(request)
    await backend_with_long_lease.close()


async def test_a_draining_worker_finishes_what_it_can_and_pulls_no_more(harness: Harness, backend: Backend) -> None:
    engine = GatedEngine(limit=1)
    request, later = make_request(), make_request()
    await submit(backend, request)
    async with harness.worker(engine) as worker:
        await tokens_of(backend, request, 1)
        worker.drain()
        await submit(backend, later)
        engine.limit = 1000
        assert told(await answer(backend, request.id)) == foretold(request)
    assert (await backend.transport.depth(MODEL)).waiting == 1


async def test_a_fenced_worker_drops_its_run(harness: Harness, backend: Backend) -> None:
    engine = GatedEngine(limit=2)
    request = make_request(max_tokens=50)
    await submit(backend, request)
    async with harness.worker(engine):
        await tokens_of(backend, request, 2)
        [usurper] = await backend.token_log.acquire([request.id], "b")
        assert usurper is not None
        engine.limit = 1
        await until(lambda: engine.aborted == [f"{request.id}/1"])
        assert usurper.next_seq == 2


class BrokenEngine(ScriptedEngine):
    def step(self) -> list[EngineOutput]:
        raise RuntimeError("broken")


async def test_a_broken_engine_stops_its_worker_and_the_request_lives_on(
    harness: Harness, backend: Backend
) -> None:
    request = make_request()
    await submit(backend, request)
    with pytest.raises(ExceptionGroup, match="unhandled"):
        await harness.make(BrokenEngine()).run()
    await lapse(backend)
    async with harness.worker(name="b"):
        assert told(await answer(backend, request.id)) == foretold(request)


async def test_suspects_run_one_at_a_time_until_they_are_cleared(harness: Harness, backend: Backend) -> None:
    """Given requests that lost two workers together, then one is run, and the next once that gave a token."""
    requests = [make_request(f"{i}") for i in range(3)]
    for request in requests:
        await submit(backend, request)
    await taken(backend, 3)
    for attempt in (1, 2):
        await backend.token_log.acquire([request.id for request in requests], f"dead-{attempt}", [attempt] * 3)
        if attempt == 1:
            assert len(await backend.transport.claim(MODEL, "dead-2", 3)) == 3
            await lapse(backend)
    engine = GatedEngine(limit=0)
    async with harness.worker(engine) as worker:
        await until(lambda: len(worker._puller._deferred) == 2)
        await until(lambda: engine.stats().running == 1)
        engine.limit = 1000
        for request in requests:
            assert told(await answer(backend, request.id)) == foretold(request)
    assert await backend.dead_letters.list() == []

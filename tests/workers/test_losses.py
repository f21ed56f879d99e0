"""Workers that die, lose their lease, fail or drain: other workers complete their requests."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from shared.backend import Backend
from shared.protocol import FinishReason, Message, PromptOptions, PromptUsage, Request, Token, TokenEvent, Usage
from shared.queue.interface import Room
from shared.redis import keys
from shared.token_log.interface import Append
from tests.support.checkpoints import CONFIGS, byte_tokenizer
from tests.support.fakes import MODEL, answer, lapse, make_request, submit
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import (
    GatedEngine,
    Harness,
    answer_tokens,
    expected_tokens,
    wait_for_tokens,
    wait_until,
)
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.text.tokenizer import Tokenizer
from workers.scripted_engine import ScriptedEngine, expected, text_of


async def pull_and_die(backend: Backend, count: int = 1) -> None:
    """Pull requests for a worker that then disappears."""
    assert len((await backend.transport.pull(MODEL, "dead", Room.all(count))).found) == count
    await lapse(backend)


async def test_an_answer_continues_where_a_dead_worker_stopped(harness: Harness, backend: Backend) -> None:
    request = make_request("take me over", max_tokens=9, n=2)
    await submit(backend, request)
    await pull_and_die(backend)
    [lease] = await backend.token_log.acquire([request.id], "dead")
    assert lease is not None
    tokens = [
        Token(c, expected_tokens(request, c)[p], text_of(expected_tokens(request, c)[p]))
        for p in range(3)
        for c in range(2)
    ]
    await backend.token_log.append([Append(lease, TokenEvent(0, tuple(tokens[:5])), 12)])

    async with harness.worker():
        events = await answer(backend, request.id)

    assert harness.metrics.registry.get_sample_value("headrace_worker_takeovers_total", {"model": MODEL}) == 1
    assert [answer_tokens(events, c) for c in range(2)] == [expected_tokens(request, c) for c in range(2)]
    end = events[-1].terminal
    assert end is not None
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (12, 18)


async def test_the_prompt_is_told_once(harness: Harness, backend: Backend) -> None:
    """Given a takeover, its tokens and its cached tokens are those of the run with the first token."""
    request = make_request("take me over", max_tokens=3)
    params = msgspec.structs.replace(request.params, return_token_ids=True)
    request = msgspec.structs.replace(request, params=params)
    await submit(backend, request)
    await pull_and_die(backend)
    [lease] = await backend.token_log.acquire([request.id], "dead")
    assert lease is not None
    first = Token(0, expected_tokens(request)[0], "")
    told = TokenEvent(0, (first,), None, (Token(0, 116, ""),), PromptUsage(12, 7))
    await backend.token_log.append([Append(lease, told, 12)])
    other = msgspec.structs.replace(make_request("alone", max_tokens=3), params=params)
    await submit(backend, other)

    async with harness.worker():
        events, alone = await answer(backend, request.id), await answer(backend, other.id)

    assert events[0] == told
    assert [bool(event.prompt or event.prompt_usage) for event in events[1:]] == [False] * (len(events) - 1)
    assert events[-1].terminal is not None
    assert events[-1].terminal.usage == Usage(12, 3, cached_tokens=7)
    assert [token.id for token in alone[0].prompt] == [ord(letter) for letter in "alone"]
    assert alone[0].prompt_usage == PromptUsage(len("alone"))


CLOCK = (  # a different prompt each time
    "{{ strftime_now('%f') }}{{ hint }}{% for d in documents or [] %}{{ d.text }}{% endfor %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)
OPTIONS = PromptOptions(chat_template_kwargs='{"hint": "h<eos>"}', documents='[{"text": "d<bos>"}]')


@pytest.fixture(scope="module")
def clock_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Tokenizer with a chat template that contains the time."""
    folder = tmp_path_factory.mktemp("clock_tokenizer")
    made = byte_tokenizer()
    made.chat_template = CLOCK
    made.save_pretrained(folder)
    CONFIGS["llama"].save_pretrained(folder)
    return Tokenizer(folder)


class GatedRecordingEngine(GatedEngine):
    """GatedEngine with a real tokenizer, which records its requests."""

    def __init__(self, tokenizer: Tokenizer, limit: int) -> None:
        super().__init__(limit)
        self.tokenizer = tokenizer
        self.requests: list[EngineRequest] = []

    def add(self, request: EngineRequest) -> None:
        self.requests.append(request)
        super().add(request)


async def test_a_takeover_keeps_the_prompt_of_the_first_run(
    harness: Harness, backend: Backend, clock_tokenizer: Tokenizer
) -> None:
    """Given a template with the time, variables and documents, and a lost worker, expect the first run's prompt."""
    chat = (Message("user", "what time is it?"),)
    assert clock_tokenizer.encode_chat(chat) != clock_tokenizer.encode_chat(chat)
    harness.settings = harness.settings.model_copy(update={"grace": 0.05})
    request = msgspec.structs.replace(
        make_request(max_tokens=9), prompt=None, messages=chat, prompt_options=OPTIONS
    )
    first, second = GatedRecordingEngine(clock_tokenizer, 3), GatedRecordingEngine(clock_tokenizer, 1000)
    await submit(backend, request)
    async with harness.worker(first, "a"):
        await wait_for_tokens(backend, request, 3)
    async with harness.worker(second, "b"):
        events = await answer(backend, request.id)
    [asked], [again] = first.requests, second.requests
    assert clock_tokenizer.decode_all(asked.prompt).endswith("h<eos>d<bos>what time is it?")
    assert not {256, 257} & set(asked.prompt)
    assert again.prompt == asked.prompt
    assert [len(ids) for ids in again.resumed] == [3]
    assert answer_tokens(events) == [expected(asked.prompt, 0, position) for position in range(9)]


async def test_a_takeover_keeps_a_truncated_prompt(harness: Harness, backend: Backend) -> None:
    """Given a prompt that is cut to the context, and a next worker with a longer one, expect the same prompt."""
    harness.settings = harness.settings.model_copy(update={"grace": 0.05})
    options = PromptOptions(truncate_prompt_tokens=-1)
    request = msgspec.structs.replace(make_request("a long question", max_tokens=9), prompt_options=options)
    first, second = GatedEngine(3), GatedEngine(1000)
    first.max_model_len = 20
    await submit(backend, request)
    async with harness.worker(first, "a"):
        await wait_for_tokens(backend, request, 3)
    async with harness.worker(second, "b"):
        events = await answer(backend, request.id)
    prompt = [ord(letter) for letter in "ng question"]
    assert answer_tokens(events) == [expected(prompt, 0, position) for position in range(9)]


async def test_an_echo_is_sent_once(harness: Harness, backend: Backend) -> None:
    """Given a request with echo, whose worker dies before or after the echo, expect one echo."""
    for written in (0, 2):
        request = make_request(f"echo {written}", max_tokens=4)
        request = msgspec.structs.replace(request, params=msgspec.structs.replace(request.params, echo=True))
        await submit(backend, request)
        await pull_and_die(backend)
        [lease] = await backend.token_log.acquire([request.id], "dead")
        assert lease is not None
        prompt = tuple(Token(0, ord(letter), letter) for letter in f"echo {written}")
        if written:
            tokens = tuple(Token(0, token, text_of(token)) for token in expected_tokens(request)[:written])
            await backend.token_log.append([Append(lease, TokenEvent(0, tokens, None, prompt), len(prompt))])
        async with harness.worker():
            events = await answer(backend, request.id)
        assert answer_tokens(events) == expected_tokens(request)
        assert [event.prompt for event in events if event.prompt] == [prompt]
        assert events[0].prompt == prompt


async def test_an_answer_without_its_terminal_event_gets_one(harness: Harness, backend: Backend) -> None:
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

    assert (answer_tokens(events), events[-1].seq) == ([5], 1)


async def test_a_request_that_lost_too_many_workers_is_set_aside(harness: Harness, backend: Backend) -> None:
    harness.settings = harness.settings.model_copy(update={"max_attempts": 1})
    request = make_request()
    await submit(backend, request)
    await pull_and_die(backend)
    await backend.token_log.acquire([request.id], "dead", [1])

    async with harness.worker():
        [end] = await answer(backend, request.id)

    assert end.terminal is not None
    assert end.terminal.error is not None
    assert end.terminal.error.code == "request_abandoned"
    [letter] = await backend.dead_letters.list()
    assert (letter.request, letter.reason, letter.attempts) == (request, end.terminal.error, 1)
    labels = {"model": MODEL, "reason": "request_abandoned"}
    assert harness.metrics.registry.get_sample_value("headrace_worker_dead_letters_total", labels) == 1


@pytest.mark.parametrize("alone", [True, False])
async def test_a_request_lost_alone_twice_is_set_aside(harness: Harness, backend: Backend, alone: bool) -> None:
    """Given two workers lost with a request, expect it to be set aside only if they ran nothing else."""
    request = make_request()
    await submit(backend, request)
    await pull_and_die(backend)
    await backend.token_log.acquire([request.id], "dead-1", [1], alone=alone)
    await lapse(backend)
    assert len((await backend.transport.claim(MODEL, "dead-2", Room.all(1))).found) == 1
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
        assert (answer_tokens(events), letters) == (expected_tokens(request), [])


async def wait_for_alone(backend: Backend, request: Request, expected: bytes) -> None:
    """Wait until the record of running alone has a value."""
    async with asyncio.timeout(LIMIT_S):
        while await backend.redis.hget(keys.state(request.id), "alone") != expected:
            await asyncio.sleep(0)


async def test_a_request_is_alone_until_another_joins(harness: Harness, backend: Backend) -> None:
    harness.settings = harness.settings.model_copy(update={"lease": 1})  # heartbeats come three times a lease
    first, second = make_request("first"), make_request("second")
    engine = GatedEngine(limit=0)
    async with harness.worker(engine):
        await submit(backend, first)
        await wait_for_alone(backend, first, b"1")
        await submit(backend, second)
        await wait_until(lambda: engine.stats().running == 2)
        for request in (first, second):
            assert await backend.redis.hget(keys.state(request.id), "alone") == b"0"
        engine.limit = 1000


async def test_the_last_request_left_is_alone(harness: Harness, backend: Backend) -> None:
    """Given two requests, of which one ends, expect a heartbeat to record the other as alone."""
    harness.settings = harness.settings.model_copy(update={"lease": 1})  # heartbeats come three times a lease
    short, long = make_request("short", max_tokens=1), make_request("long", max_tokens=20)
    engine = GatedEngine(limit=0)
    await submit(backend, short)
    await submit(backend, long)
    async with harness.worker(engine):
        await wait_until(lambda: engine.stats().running == 2)
        assert await backend.redis.hget(keys.state(long.id), "alone") == b"0"
        engine.limit = 1
        await wait_for_alone(backend, long, b"1")
        engine.limit = 1000


async def test_a_draining_worker_hands_over_unfinished_requests(harness: Harness, backend: Backend) -> None:
    harness.settings = harness.settings.model_copy(update={"grace": 0.05, "lease": 300})
    backend_with_long_lease = Backend.open(harness.settings)
    harness.backend = backend_with_long_lease
    request = make_request(max_tokens=20)
    await submit(backend, request)
    async with harness.worker(GatedEngine(limit=3), "a"):
        await wait_for_tokens(backend, request, 3)
    async with harness.worker(name="b"):
        events = await answer(backend, request.id)
    assert answer_tokens(events) == expected_tokens(request)
    await backend_with_long_lease.close()


async def test_a_draining_worker_finishes_and_stops_pulling(harness: Harness, backend: Backend) -> None:
    engine = GatedEngine(limit=1)
    request, later = make_request(), make_request()
    await submit(backend, request)
    async with harness.worker(engine) as worker:
        await wait_for_tokens(backend, request, 1)
        worker.drain()
        await submit(backend, later)
        engine.limit = 1000
        assert answer_tokens(await answer(backend, request.id)) == expected_tokens(request)
    assert (await backend.transport.depth(MODEL)).waiting == 1


async def test_a_worker_that_lost_its_lease_drops_the_run(harness: Harness, backend: Backend) -> None:
    engine = GatedEngine(limit=2)
    request = make_request(max_tokens=50)
    await submit(backend, request)
    async with harness.worker(engine):
        await wait_for_tokens(backend, request, 2)
        [new_lease] = await backend.token_log.acquire([request.id], "b")
        assert new_lease is not None
        engine.limit = 1
        await wait_until(lambda: engine.aborted == [f"{request.id}/1"])
        assert new_lease.next_seq == 2
    for name in ("leases_lost", "fenced_writes"):
        assert harness.metrics.registry.get_sample_value(f"headrace_worker_{name}_total", {"model": MODEL}) == 1


class BrokenEngine(ScriptedEngine):
    def step(self) -> list[EngineOutput]:
        raise RuntimeError("broken")


async def test_a_failed_engine_stops_its_worker_alone(harness: Harness, backend: Backend) -> None:
    request = make_request()
    await submit(backend, request)
    with pytest.raises(ExceptionGroup, match="unhandled"):
        await harness.make(BrokenEngine()).run()
    await lapse(backend)
    async with harness.worker(name="b"):
        assert answer_tokens(await answer(backend, request.id)) == expected_tokens(request)


async def test_requests_on_their_last_attempt_run_one_by_one(harness: Harness, backend: Backend) -> None:
    """Given requests that lost two workers together, expect each to run after the last one gave a token."""
    requests = [make_request(f"{i}") for i in range(3)]
    for request in requests:
        await submit(backend, request)
    await pull_and_die(backend, 3)
    for attempt in (1, 2):
        await backend.token_log.acquire([request.id for request in requests], f"dead-{attempt}", [attempt] * 3)
        if attempt == 1:
            assert len((await backend.transport.claim(MODEL, "dead-2", Room.all(3))).found) == 3
            await lapse(backend)
    engine = GatedEngine(limit=0)
    async with harness.worker(engine) as worker:
        await wait_until(lambda: len(worker._puller._deferred) == 2)
        await wait_until(lambda: engine.stats().running == 1)
        engine.limit = 1000
        for request in requests:
            assert answer_tokens(await answer(backend, request.id)) == expected_tokens(request)
    assert await backend.dead_letters.list() == []

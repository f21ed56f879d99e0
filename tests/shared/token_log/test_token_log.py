"""The contract of a TokenLog: creating, writing and ending an answer."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from shared.backend import Backend
from shared.errors import DeadlineExceeded, EngineFailed, NotFound
from shared.protocol import ErrorInfo, FinishReason, Request, RequestState, Terminal, Token, TokenEvent, Usage
from shared.redis import keys
from shared.token_log.interface import Adoption, Append, Keepsake, Unfinished
from shared.token_log.redis import MAX_JOINED
from tests.support.fakes import answer, make_request, token_event
from tests.support.log_calls import DONE, acquire, append, created
from tests.support.waiting import LIMIT_S


async def test_an_answer_is_read_as_it_was_written(backend: Backend, request_: Request) -> None:
    lease = await acquire(backend, request_)
    written = [token_event(0, "a"), token_event(1, "b", "c"), TokenEvent(3, (), DONE)]
    for event in written:
        assert await append(backend, lease, event)

    assert await answer(backend, request_.id) == written
    record = await backend.token_log.record(request_.id)
    assert record is not None
    assert (record.state, record.prompt_tokens, record.completion_tokens) == (RequestState.COMPLETED, 3, 3)
    assert record.created_at <= record.started_at <= record.first_token_at <= record.finished_at


async def test_a_takeover_keeps_the_start_time_of_the_first_worker(backend: Backend) -> None:
    asked = [await created(backend) for _ in range(2)]
    first, second = await acquire(backend, asked[0], "a"), await acquire(backend, asked[0], "b")
    assert first.acquired_at == first.started_at == second.started_at <= second.acquired_at

    job_ids = [asked[0].id, make_request().id, asked[1].id]
    running, unknown, queued = await backend.token_log.records(job_ids)

    assert running == await backend.token_log.record(asked[0].id)
    assert unknown is None
    assert queued == await backend.token_log.record(asked[1].id)
    assert await backend.token_log.states(job_ids) == [RequestState.RUNNING, None, RequestState.QUEUED]
    found = {each.id: each async for some in backend.token_log.unfinished() for each in some}
    for record in (running, queued):
        assert found[record.id] == Unfinished(
            record.id, record.state, record.model, record.created_at, record.source
        )


async def test_a_record_has_the_finish_reason(backend: Backend) -> None:
    stopped, failed, cancelled, overdue = [await created(backend) for _ in range(4)]
    lease = await acquire(backend, stopped)
    assert await append(backend, lease, TokenEvent(0, (Token(0, 1, "a", FinishReason.STOP),)))
    assert await append(backend, lease, TokenEvent(1, (), DONE))
    error = ErrorInfo.from_error(EngineFailed("no"))
    end = Terminal(RequestState.FAILED, Usage(3, 0), error)
    assert await append(backend, await acquire(backend, failed), TokenEvent(0, (), end))
    await backend.token_log.close(cancelled.id)
    await backend.token_log.close(overdue.id, DeadlineExceeded("late"))

    records = await backend.token_log.records([each.id for each in (stopped, failed, cancelled, overdue)])

    assert [record.finish for record in records] == ["stop", "engine_failed", "cancelled", "deadline_exceeded"]
    states = await backend.token_log.states([record.id for record in records])
    assert states == [record.state for record in records]
    unfinished = {each.id async for some in backend.token_log.unfinished() for each in some}
    assert unfinished.isdisjoint(record.id for record in records)


@pytest.mark.parametrize("how", ["finish", "close"])
async def test_the_end_is_published_on_all_channels(backend: Backend, how: str) -> None:
    """The end goes to the channels of the last adoption, the watcher and the carrier; not to a replaced one."""
    asked, token_log = make_request(), backend.token_log
    names = [keys.notify_channel(name) for name in ("first", "second", "watching", "carrying")]
    async with AsyncExitStack() as stack:
        first, *others = [await stack.enter_async_context(backend.live.subscribe(name)) for name in names]
        assert await token_log.create(asked, notify=names[0], watcher=names[2])
        await token_log.adopt([Adoption(asked, "t/0/0", create=False)], names[3])
        await token_log.adopt([Adoption(asked, "", create=False)], names[1])
        if how == "close":
            await token_log.close(asked.id)
        else:
            assert await append(backend, await acquire(backend, asked), TokenEvent(0, (), DONE))
        assert [await heard.get(LIMIT_S) for heard in others] == [asked.id.encode()] * 3
        assert await first.get(0.01) is None


async def test_a_gap_is_refused_and_a_repeat_changes_nothing(backend: Backend, request_: Request) -> None:
    lease = await acquire(backend, request_)
    assert not await append(backend, lease, token_event(1, "b"))
    assert await append(backend, lease, token_event(0, "a", "b"))
    assert await append(backend, lease, token_event(0, "a", "b"))
    assert await append(backend, lease, TokenEvent(2, (), DONE))
    assert await append(backend, lease, TokenEvent(2, (), DONE))
    assert not await append(backend, lease, token_event(3, "c"))

    assert [event.seq for event in await answer(backend, request_.id)] == [0, 2]


async def test_closing_fences_and_notifies_the_worker(backend: Backend, request_: Request) -> None:
    lease = await acquire(backend, request_, "a")
    await append(backend, lease, token_event(0, "a", "b"))

    async with backend.live.subscribe(keys.control_channel("a")) as told:
        before = await backend.token_log.close(request_.id)
        assert await told.get(LIMIT_S) == request_.id.encode()

    assert before is not None
    assert before.state is RequestState.RUNNING
    assert not await append(backend, lease, token_event(2, "c"))
    waited = before.started_at - before.created_at
    end = (await answer(backend, request_.id))[-1]
    assert end.terminal is not None
    assert end.terminal.waited == pytest.approx(waited, abs=1e-3)
    assert end == TokenEvent(2, (), Terminal(RequestState.CANCELLED, Usage(3, 2), waited=end.terminal.waited))
    again = await backend.token_log.close(request_.id, EngineFailed("late"))
    assert again is not None
    assert again.state is RequestState.CANCELLED
    assert await backend.token_log.acquire([request_.id], "b") == [None]


async def test_a_failure_keeps_its_type(backend: Backend, request_: Request) -> None:
    await backend.token_log.close(request_.id, EngineFailed('it said "no"', param="prompt"))

    [end] = await answer(backend, request_.id)

    assert end.terminal is not None
    assert end.terminal.error is not None
    error = end.terminal.error.to_error()
    assert isinstance(error, EngineFailed)
    assert (error.message, error.param) == ('it said "no"', "prompt")


async def test_an_unknown_request_is_not_found(backend: Backend) -> None:
    assert await backend.token_log.record("req_x") is None
    assert await backend.token_log.close("req_x") is None
    assert await backend.token_log.acquire(["req_x"], "a") == [None]
    with pytest.raises(NotFound):
        await answer(backend, "req_x")


async def test_a_log_is_bounded_in_length_and_time(on_redis: Backend) -> None:
    request_ = await created(on_redis)
    lease = await acquire(on_redis, request_)
    await append(on_redis, lease, token_event(0, "a"))
    unfinished = await on_redis.redis.pttl(keys.log(request_.id))
    await append(on_redis, lease, TokenEvent(1, (), DONE))
    for key in (keys.state(request_.id), keys.log(request_.id)):
        assert 0 < await on_redis.redis.pttl(key) <= 3_600_000 < unfinished <= 86_400_000

    long = make_request()
    await on_redis.token_log.create(long)
    lease = await acquire(on_redis, long)
    assert not await append(on_redis, lease, token_event(0, *["x"] * 262_145))


async def test_a_keepsake_lives_as_long_as_its_answer(on_redis: Backend) -> None:
    request_ = make_request()
    await on_redis.token_log.create(request_, keepsake=Keepsake(b"{}", ttl=7_200))
    lease = await acquire(on_redis, request_)
    await append(on_redis, lease, token_event(0, "a"))
    lives = [keys.state(request_.id), keys.log(request_.id), keys.keepsake(request_.id)]
    assert {await on_redis.redis.pttl(key) // 1_000_000 for key in lives} == {86}  # the request's
    await append(on_redis, lease, TokenEvent(1, (), DONE))
    assert {await on_redis.redis.pttl(key) // 1_000_000 for key in lives} == {7}
    await on_redis.token_log.forget(request_.id)
    assert await on_redis.redis.exists(*lives) == 0


async def test_a_keepsake_is_kept_as_it_was(backend: Backend) -> None:
    kept, plain = make_request(), make_request()
    await backend.token_log.create(kept, keepsake=Keepsake(b"\x00{}", ttl=60))
    await backend.token_log.create(plain)
    assert not await backend.token_log.create(kept, keepsake=Keepsake(b"other", ttl=60))
    told = [await backend.token_log.keepsake(each) for each in (kept.id, plain.id, "req_unknown")]
    assert told == [b"\x00{}", None, None]
    await backend.token_log.forget(kept.id)
    assert await backend.token_log.keepsake(kept.id) is None


async def test_a_log_is_made_once(backend: Backend, request_: Request) -> None:
    lease = await acquire(backend, request_)
    await append(backend, lease, token_event(0, "a"))
    assert not await backend.token_log.create(request_)
    assert (await backend.token_log.read(request_.id)).events == (token_event(0, "a"),)


async def test_acquiring_a_request_past_its_deadline_ends_it(backend: Backend) -> None:
    now = await backend.token_log.now()
    late, early = make_request(deadline=now - 1), make_request(deadline=now + 60)
    for request in (late, early):
        await backend.token_log.create(request)

    [none, lease] = await backend.token_log.acquire([late.id, early.id], "a")

    assert none is None
    assert lease is not None
    [end] = await answer(backend, late.id)
    assert end.terminal is not None
    assert end.terminal.error is not None
    assert isinstance(end.terminal.error.to_error(), DeadlineExceeded)
    record = await backend.token_log.record(late.id)
    assert record is not None
    assert (record.state, record.started_at, record.deadline) == (RequestState.FAILED, None, pytest.approx(now - 1))


@pytest.mark.parametrize("ending", ["append", "close", "deadline"])
async def test_every_end_is_published_on_the_requested_channel(backend: Backend, ending: str) -> None:
    """The id of a request with a channel is published once, however it ends; others are not published."""
    now = await backend.token_log.now()
    asked, silent = (make_request(deadline=now + (-1 if ending == "deadline" else 60)) for _ in range(2))
    channel = keys.notify_channel("test")
    async with backend.live.subscribe(channel) as told:
        await backend.token_log.create(silent)
        assert await backend.token_log.create(asked, notify=channel)
        for request in (silent, asked):
            if ending == "append":
                lease = await acquire(backend, request)
                await append(backend, lease, token_event(0, "a"))
                await append(backend, lease, TokenEvent(1, (), DONE))
            elif ending == "close":
                await backend.token_log.close(request.id)
            else:
                await backend.token_log.acquire([request.id], "a")
        await backend.token_log.close(asked.id)
        assert await told.get(LIMIT_S) == asked.id.encode()
        assert await told.get(0.05) is None


async def test_an_adopted_request_keeps_its_first_source(backend: Backend) -> None:
    """The first record to adopt a log becomes its source; its last channel gets the end."""
    made, unknown, given = make_request(), make_request(), make_request()
    await backend.token_log.create(given)
    [first, nothing, published] = await backend.token_log.adopt(
        [Adoption(made, "t/0/1", True), Adoption(unknown, "t/0/2", False), Adoption(given, "t/0/3", False)], "hr:x"
    )
    assert first is not None
    assert published is not None
    assert (first.source, first.state, nothing, published.source) == ("t/0/1", RequestState.QUEUED, None, "t/0/3")
    [same, other] = await backend.token_log.adopt(
        [Adoption(made, "t/0/1", True), Adoption(given, "t/1/9", True)], "hr:y"
    )
    assert same is not None
    assert other is not None
    assert (same.source, other.source) == ("t/0/1", "t/0/3")
    async with backend.live.subscribe("hr:x") as before, backend.live.subscribe("hr:y") as now:
        for request in (made, given):
            await backend.token_log.close(request.id)
        assert await now.get(LIMIT_S) == made.id.encode()
        assert await before.get(LIMIT_S) == given.id.encode()


async def test_appends_of_one_round_trip_are_judged_one_by_one(backend: Backend) -> None:
    """Given more requests than one call has, some taken over, some repeated: each has its own reply and log."""
    requests = [await created(backend) for _ in range(MAX_JOINED + 6)]
    leases = [await acquire(backend, request) for request in requests]
    first = [Append(lease, token_event(0, "a"), 3, (7, number)) for number, lease in enumerate(leases)]
    assert await backend.token_log.append(first) == [True] * len(leases)
    lost = {number: await acquire(backend, requests[number], "b") for number in (0, 5, MAX_JOINED)}
    repeated, ended = (1, MAX_JOINED + 1), (2, MAX_JOINED + 2)
    events = dict.fromkeys(repeated, token_event(0, "a")) | dict.fromkeys(ended, TokenEvent(1, (), DONE))
    second = [Append(lease, events.get(n, token_event(1, "b")), 3) for n, lease in enumerate(leases)]
    assert await backend.token_log.append(second) == [n not in lost for n in range(len(leases))]
    for number, request in enumerate(requests):
        texts = ["a"] if number in {*lost, *repeated, *ended} else ["a", "b"]
        page = await backend.token_log.read(request.id)
        assert [token.text for event in page.events for token in event.tokens] == texts
        assert page.complete == (number in ended)
    assert lost[MAX_JOINED].prompt == (7, MAX_JOINED)

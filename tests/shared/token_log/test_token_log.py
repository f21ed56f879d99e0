"""The contract of a TokenLog: fenced, gapless, readable from any seq."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing

import pytest

from shared.backend import Backend
from shared.errors import DeadlineExceeded, EngineFailed, NotFound, Unavailable
from shared.protocol import ErrorInfo, FinishReason, Request, RequestState, Terminal, Token, TokenEvent, Usage
from shared.redis import keys
from shared.redis.embedded import EmbeddedServer
from shared.token_log.answer import read_whole
from shared.token_log.interface import Adoption, Append, Keepsake, Lease, LogPage
from shared.token_log.redis import PAGE_SEQS
from shared.token_log.subscription import MAX_BACKLOG
from tests.support.fakes import answer, make_request, token_event
from tests.support.waiting import LIMIT_S

DONE = Terminal(RequestState.COMPLETED, Usage(3, 2))


async def created(backend: Backend) -> Request:
    request = make_request(created_at=await backend.token_log.now())
    assert await backend.token_log.create(request)
    return request


@pytest.fixture
async def request_(backend: Backend) -> Request:
    return await created(backend)


async def acquire(backend: Backend, request: Request, owner: str = "a") -> Lease:
    [lease] = await backend.token_log.acquire([request.id], owner)
    assert lease is not None
    return lease


async def append(backend: Backend, lease: Lease, event: TokenEvent) -> bool:
    [written] = await backend.token_log.append([Append(lease, event, 3)])
    return written


async def recorded(backend: Backend, lease: Lease, event: TokenEvent, prompt: tuple[int, ...]) -> bool:
    [written] = await backend.token_log.append([Append(lease, event, len(prompt), prompt)])
    return written


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


async def test_records_come_in_one_go_and_a_takeover_knows_when_the_first_worker_began(backend: Backend) -> None:
    asked = [await created(backend) for _ in range(2)]
    first, second = await acquire(backend, asked[0], "a"), await acquire(backend, asked[0], "b")
    assert first.acquired_at == first.started_at == second.started_at <= second.acquired_at

    running, unknown, queued = await backend.token_log.records([asked[0].id, make_request().id, asked[1].id])

    assert running == await backend.token_log.record(asked[0].id)
    assert unknown is None
    assert queued == await backend.token_log.record(asked[1].id)


async def test_a_record_tells_why_the_answer_ended(backend: Backend) -> None:
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


@pytest.mark.parametrize("how", ["finish", "close"])
async def test_all_who_want_to_know_hear_of_the_end(backend: Backend, how: str) -> None:
    """Given one who asked, who took over from it, who watches, and a carrier, Expect all but the first told."""
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


async def test_the_worker_that_lost_its_lease_writes_nothing_and_the_next_goes_on(
    backend: Backend, request_: Request
) -> None:
    first = await acquire(backend, request_, "a")
    assert await append(backend, first, token_event(0, "a"))

    second = await acquire(backend, request_, "b")

    assert (second.epoch, second.next_seq, second.history) == (first.epoch + 1, 1, (token_event(0, "a"),))
    assert not await append(backend, first, token_event(1, "x"))
    assert not await append(backend, first, token_event(0, "a"))
    assert await append(backend, second, token_event(1, "b"))


async def test_the_next_worker_gets_the_prompt_that_the_first_recorded(backend: Backend, request_: Request) -> None:
    first = await acquire(backend, request_, "a")
    assert first.prompt == ()
    assert await recorded(backend, first, token_event(0, "a"), (7, 65_535))
    second = await acquire(backend, request_, "b")
    assert second.prompt == (7, 65_535)
    assert not await recorded(backend, first, token_event(0, "a"), (8,))  # fenced
    assert await append(backend, second, token_event(1, "b"))
    assert (await acquire(backend, request_, "c")).prompt == (7, 65_535)


async def test_a_prompt_of_large_ids_is_kept_whole(backend: Backend, request_: Request) -> None:
    prompt = (0, 65_536, 2**31 - 1)
    assert await recorded(backend, await acquire(backend, request_), token_event(0, "a"), prompt)
    assert (await acquire(backend, request_)).prompt == prompt


@pytest.mark.parametrize("how", ["finish", "close", "forget"])
async def test_a_prompt_is_kept_no_longer_than_its_request_runs(on_redis: Backend, how: str) -> None:
    request = await created(on_redis)
    lease = await acquire(on_redis, request)
    assert await recorded(on_redis, lease, token_event(0, "a"), (7,))
    lives = [await on_redis.redis.pttl(key(request.id)) for key in (keys.log, keys.prompt)]
    assert abs(lives[0] - lives[1]) < 1000
    assert lives[1] > 0
    if how == "finish":
        assert await append(on_redis, lease, TokenEvent(1, (), DONE))
    else:
        await getattr(on_redis.token_log, how)(request.id)
    assert not await on_redis.redis.exists(keys.prompt(request.id))


async def test_closing_ends_the_answer_and_fences_and_tells_its_worker(backend: Backend, request_: Request) -> None:
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


async def test_what_is_unknown_is_not_found(backend: Backend) -> None:
    assert await backend.token_log.record("req_x") is None
    assert await backend.token_log.close("req_x") is None
    assert await backend.token_log.acquire(["req_x"], "a") == [None]
    with pytest.raises(NotFound):
        await answer(backend, "req_x")


async def test_a_reader_may_start_after_any_seq_also_within_an_append(backend: Backend, request_: Request) -> None:
    lease = await acquire(backend, request_)
    await append(backend, lease, token_event(0, "a", "b", "c"))
    await append(backend, lease, TokenEvent(3, token_event(3, "d").tokens, DONE))

    for after in range(-1, 7):
        events = [e async for e in backend.token_log.follow(request_.id, after, idle=LIMIT_S)]
        seqs = [event.seq + i for event in events for i in range(event.count)]
        assert seqs == list(range(after + 1, 5))


async def test_a_reader_sees_appends_as_they_are_made(backend: Backend, request_: Request) -> None:
    lease = await acquire(backend, request_)
    async with aclosing(backend.token_log.follow(request_.id, idle=0.01)) as events:
        assert await anext(events) is None  # nothing yet: the reader says so, and is subscribed by now
        for i in range(3):
            await append(backend, lease, token_event(i, "x"))
            while (event := await anext(events)) is None:
                pass
            assert event == token_event(i, "x")


async def test_a_reader_from_beyond_the_end_is_told_of_it(backend: Backend, request_: Request) -> None:
    lease = await acquire(backend, request_)
    await append(backend, lease, token_event(0, "a"))
    async with aclosing(backend.token_log.follow(request_.id, 9, idle=0.01)) as events:
        assert await anext(events) is None  # it has read the log by now
        await append(backend, lease, TokenEvent(1, token_event(1, "b").tokens, DONE))
        assert [event async for event in events if event is not None] == [TokenEvent(2, (), DONE)]
    async with aclosing(backend.token_log.follow(request_.id, 9, idle=0.01)) as events:
        assert [event async for event in events] == []


async def test_a_reader_from_beyond_the_end_hears_of_it_live(
    backend: Backend, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await acquire(backend, request_)
    read, waiting = backend.token_log.read, asyncio.Event()

    async def noting(job_id: str, after: int = -1) -> LogPage:
        page = await read(job_id, after)
        waiting.set()
        return page

    monkeypatch.setattr(backend.token_log, "read", noting)
    async with asyncio.timeout(LIMIT_S), aclosing(backend.token_log.follow(request_.id, 9, idle=LIMIT_S)) as events:
        last = asyncio.ensure_future(anext(events))
        await waiting.wait()
        await append(backend, lease, token_event(0, "a"))
        await append(backend, lease, TokenEvent(1, (), DONE))
        assert await last == TokenEvent(1, (), DONE)


async def test_a_slow_reader_reads_the_log_instead_of_growing(backend: Backend, request_: Request) -> None:
    lease = await acquire(backend, request_)
    total = max(PAGE_SEQS, MAX_BACKLOG) * 2 + 5
    async with aclosing(backend.token_log.follow(request_.id, idle=0.01)) as events:
        assert await anext(events) is None
        await backend.token_log.append([Append(lease, token_event(i, "x"), 3) for i in range(total)])
        await append(backend, lease, TokenEvent(total, (), DONE))
        seqs = [event.seq async for event in events if event is not None]
    assert seqs == list(range(total + 1))


async def test_a_page_is_bounded_in_tokens_and_holds_at_least_one_entry(on_redis: Backend) -> None:
    """Given entries of many tokens, if a reader is behind, then it holds no more than a page of them at a time."""
    request_ = await created(on_redis)
    lease = await acquire(on_redis, request_)
    sizes = [PAGE_SEQS // 3, PAGE_SEQS // 3, PAGE_SEQS // 3, PAGE_SEQS // 3, 2 * PAGE_SEQS, 1]
    seq, pages = 0, []
    for size in sizes:
        assert await append(on_redis, lease, token_event(seq, *["x"] * size))
        seq += size
    assert await append(on_redis, lease, TokenEvent(seq, (), DONE))
    seen, complete = -1, False
    while not complete:
        page = await on_redis.token_log.read(request_.id, seen)
        complete, seen = page.complete, page.events[-1].last_seq
        pages.append([len(event.tokens) for event in page.events])
    assert pages == [sizes[:3], sizes[3:4], sizes[4:5], [1, 0]]
    assert await on_redis.token_log.read(request_.id, seen) == LogPage((), complete=True)


async def test_many_are_read_at_once(backend: Backend) -> None:
    """Given an answer of several pages, a short one that goes on, and one unknown, Expect each in its place."""
    long, short = await created(backend), await created(backend)
    leases = [await acquire(backend, each) for each in (long, short)]
    for seq in range(PAGE_SEQS + 5):
        assert await append(backend, leases[0], token_event(seq, f"{seq} "))
    assert await append(backend, leases[0], TokenEvent(PAGE_SEQS + 5, (), DONE))
    assert await append(backend, leases[1], token_event(0, "a", "b"))

    assert await backend.token_log.read_many({"req_x": -1, short.id: 0, long.id: PAGE_SEQS + 4}) == [
        None,
        LogPage((TokenEvent(1, token_event(1, "b").tokens),), complete=False),
        LogPage((TokenEvent(PAGE_SEQS + 5, (), DONE),), complete=True),
    ]
    answers = await read_whole(backend.token_log, [short.id, "req_x", long.id])
    texts = ["".join(choice.text for _, choice in found.choices) if found else None for found in answers]
    assert texts == ["ab", None, "".join(f"{seq} " for seq in range(PAGE_SEQS + 5))]
    assert answers[2].terminal == DONE


async def test_a_reader_outlives_the_loss_of_its_live_connection(on_redis: Backend) -> None:
    request_ = await created(on_redis)
    lease = await acquire(on_redis, request_)
    async with aclosing(on_redis.token_log.follow(request_.id, idle=LIMIT_S)) as events:
        await append(on_redis, lease, token_event(0, "a"))
        assert await anext(events) == token_event(0, "a")
        await on_redis.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await append(on_redis, lease, token_event(1, "b"))
        assert await anext(events) == token_event(1, "b")


async def test_what_is_written_while_live_messages_are_lost_is_read_once_they_come_again(
    on_redis: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.token_log.live_feed.BACKOFF_S", (0.5,))
    request_ = await created(on_redis)
    lease = await acquire(on_redis, request_)
    async with aclosing(on_redis.token_log.follow(request_.id, idle=LIMIT_S)) as events:
        await append(on_redis, lease, token_event(0, "a"))
        assert await anext(events) == token_event(0, "a")
        last = asyncio.ensure_future(anext(events))
        await on_redis.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        [channel] = on_redis.live._channels.values()  # type: ignore[attr-defined]
        while channel.confirmed.is_set():
            await asyncio.sleep(0.001)
        await asyncio.gather(*(on_redis.token_log.read(request_.id) for _ in range(5)))  # a reader told now is done
        await append(on_redis, lease, TokenEvent(1, (), DONE))
        assert await asyncio.wait_for(last, LIMIT_S) == TokenEvent(1, (), DONE)


async def test_a_reader_waits_out_a_restart_of_the_server_but_does_not_begin_in_one(
    valkey: EmbeddedServer, on_redis: Backend
) -> None:
    request_ = await created(on_redis)
    lease = await acquire(on_redis, request_)
    await append(on_redis, lease, token_event(0, "a"))
    async with aclosing(on_redis.token_log.follow(request_.id, idle=0.05)) as events:
        assert await anext(events) == token_event(0, "a")
        valkey.kill()
        try:
            assert await anext(events) is None
            with pytest.raises(Unavailable):
                await answer(on_redis, request_.id)
        finally:
            valkey.start()
        assert await append(on_redis, lease, TokenEvent(1, (), DONE))
        assert [event async for event in events if event is not None] == [TokenEvent(1, (), DONE)]


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


async def test_many_readers_share_one_connection(on_redis: Backend) -> None:
    request_ = await created(on_redis)
    lease = await acquire(on_redis, request_)
    readers = [asyncio.create_task(answer(on_redis, request_.id)) for _ in range(50)]
    await append(on_redis, lease, token_event(0, "a"))
    await append(on_redis, lease, TokenEvent(1, (), DONE))
    answers = await asyncio.gather(*readers)
    assert all([e.seq for e in events] == [0, 1] for events in answers)
    clients = await on_redis.redis.client_list(_type="pubsub")
    assert len(clients) == 1


async def test_a_log_is_made_once(backend: Backend, request_: Request) -> None:
    lease = await acquire(backend, request_)
    await append(backend, lease, token_event(0, "a"))
    assert not await backend.token_log.create(request_)
    assert (await backend.token_log.read(request_.id)).events == (token_event(0, "a"),)


async def test_a_request_past_its_deadline_ends_when_somebody_would_run_it(backend: Backend) -> None:
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


async def lose(backend: Backend, request: Request, attempts: int) -> list[int]:
    """The losses that each of so many attempts, one after another, is told of."""
    told = []
    for attempt in range(1, attempts + 1):
        [lease] = await backend.token_log.acquire([request.id], str(attempt), [attempt])
        assert lease is not None
        told.append(lease.losses)
    return told


async def test_each_lost_worker_counts_and_one_that_handed_over_does_not(
    backend: Backend, request_: Request
) -> None:
    assert await lose(backend, request_, 3) == [0, 1, 2]
    [again] = await backend.token_log.acquire([request_.id], "x", [3])
    assert again is not None
    assert again.losses == 2
    [fourth] = await backend.token_log.acquire([request_.id], "y", [4])
    assert fourth is not None
    assert fourth.losses == 3


async def test_a_token_given_apart_proves_a_request_innocent(backend: Backend, request_: Request) -> None:
    """Given progress before its last attempt, then it still counts; after it, the count begins anew."""
    early = await acquire(backend, request_)
    await append(backend, early, token_event(0, "a"))
    assert await lose(backend, request_, 3) == [0, 1, 2]
    record = await backend.token_log.acquire([request_.id], "apart", [3])
    assert record[0] is not None
    await append(backend, record[0], token_event(1, "b"))
    [lease] = await backend.token_log.acquire([request_.id], "next", [4])
    assert lease is not None
    assert lease.losses == 1


async def lost(backend: Backend, request: Request, attempt: int, *, alone: bool = False) -> Lease:
    """The lease of that attempt, whose worker is lost afterwards."""
    [lease] = await backend.token_log.acquire([request.id], f"w{attempt}", [attempt], alone=alone)
    assert lease is not None
    return lease


async def test_workers_lost_alone_are_counted_in_a_row(backend: Backend, request_: Request) -> None:
    told = [
        (await lost(backend, request_, n, alone=alone)).lost_alone for n, alone in enumerate([1, 0, 1, 1, 1], 1)
    ]
    assert told == [0, 1, 0, 1, 2]


async def test_a_token_from_the_last_worker_clears_the_evidence(backend: Backend, request_: Request) -> None:
    """Given a token before the first loss, Expect it not to count; given one before the second, no evidence."""
    assert await append(backend, await lost(backend, request_, 1, alone=True), token_event(0, "a"))
    second = await lost(backend, request_, 2, alone=True)
    assert second.lost_alone == 0
    assert (await lost(backend, request_, 3, alone=True)).lost_alone == 2
    fourth = await lost(backend, request_, 4, alone=True)
    assert await append(backend, fourth, token_event(1, "b"))
    fifth = await lost(backend, request_, 5, alone=True)
    handed_over = await lost(backend, request_, 5, alone=True)
    assert (fourth.lost_alone, fifth.lost_alone, handed_over.lost_alone) == (3, 0, 0)


async def test_a_worker_that_lives_is_no_evidence(backend: Backend, request_: Request) -> None:
    """Given a worker that takes its own request again, Expect the attempt to count, but not as one lost alone."""
    leases = [
        lease
        for attempt in (1, 2, 3)
        for lease in await backend.token_log.acquire([request_.id], "a", [attempt], alone=True)
    ]
    assert [(lease.losses, lease.lost_alone) for lease in leases if lease] == [(0, 0), (1, 0), (2, 0)]


async def test_who_runs_alone_is_noted_by_the_holder_only(backend: Backend, request_: Request) -> None:
    first = await lost(backend, request_, 1)
    assert await backend.token_log.note_alone(first, alone=True)
    second = await lost(backend, request_, 2, alone=True)
    assert not await backend.token_log.note_alone(first, alone=False)
    third = await lost(backend, request_, 3, alone=True)
    assert await backend.token_log.note_alone(third, alone=False)
    fourth = await lost(backend, request_, 4)
    assert [lease.lost_alone for lease in (second, third, fourth)] == [1, 2, 0]
    await backend.token_log.close(request_.id)
    assert not await backend.token_log.note_alone(fourth, alone=True)


async def test_an_epoch_given_twice_is_its_last_owners(backend: Backend, request_: Request) -> None:
    """Given a store that lost its last second, so that two workers hold one epoch, then one of them is refused."""
    lease = await acquire(backend, request_, "a")
    twin = Lease(lease.job_id, "b", lease.epoch, lease.acquired_at)
    assert not await append(backend, twin, token_event(0, "x"))
    assert await append(backend, lease, token_event(0, "a"))


@pytest.mark.parametrize("ending", ["append", "close", "deadline"])
async def test_whoever_ends_a_request_tells_the_channel_that_asked(backend: Backend, ending: str) -> None:
    """Given a request with a channel and one without, Expect the one's id, once, however it ends."""
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


async def test_an_adopted_request_is_its_first_sources(backend: Backend) -> None:
    """Given a log, if records adopt it, Expect the first to be its source and the last of it to be told."""
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

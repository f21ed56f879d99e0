"""Reading and following a token log."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from shared.backend import Backend
from shared.errors import Unavailable
from shared.protocol import Request, TokenEvent
from shared.redis.embedded import EmbeddedServer
from shared.token_log.answer import read_whole
from shared.token_log.interface import Append, LogPage
from shared.token_log.redis import PAGE_SEQS
from shared.token_log.subscription import MAX_BACKLOG
from tests.support.fakes import answer, token_event
from tests.support.log_calls import DONE, acquire, append, created
from tests.support.waiting import LIMIT_S


async def test_a_reader_can_start_after_any_seq(backend: Backend, request_: Request) -> None:
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


async def test_a_reader_beyond_the_end_gets_the_terminal_event(backend: Backend, request_: Request) -> None:
    lease = await acquire(backend, request_)
    await append(backend, lease, token_event(0, "a"))
    async with aclosing(backend.token_log.follow(request_.id, 9, idle=0.01)) as events:
        assert await anext(events) is None  # it has read the log by now
        await append(backend, lease, TokenEvent(1, token_event(1, "b").tokens, DONE))
        assert [event async for event in events if event is not None] == [TokenEvent(2, (), DONE)]
    async with aclosing(backend.token_log.follow(request_.id, 9, idle=0.01)) as events:
        assert [event async for event in events] == []


async def test_a_reader_beyond_the_end_gets_a_live_terminal_event(
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


async def test_a_page_is_bounded_and_has_at_least_one_entry(on_redis: Backend) -> None:
    """A reader of large entries that is behind holds at most a page of them at a time."""
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
    """An answer of several pages, a short unfinished one and an unknown one are returned in order."""
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


async def test_events_during_a_lost_live_connection_are_read_later(
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


async def test_a_reader_survives_a_restart_but_cannot_start_in_one(
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

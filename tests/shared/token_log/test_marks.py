"""Marks of a request's runs."""

from __future__ import annotations

import pytest

from shared.backend import Backend
from shared.protocol import Backlog, Request, RunMark, Stay, TokenEvent
from shared.redis import keys
from shared.settings import Settings
from shared.token_log.interface import Append, Lease
from shared.token_log.marks import MAX_RUNS
from tests.support.fakes import make_request, token_event
from tests.support.log_calls import DONE

MARK = RunMark(3, 0.25, 0.5)


async def begin(backend: Backend, request: Request, owner: str, attempt: int, stay: Stay | None = None) -> Lease:
    [lease] = await backend.token_log.acquire([request.id], owner, [attempt], stays=[stay])
    assert lease is not None
    return lease


async def write(backend: Backend, lease: Lease, event: TokenEvent, mark: RunMark | None = None) -> None:
    assert await backend.token_log.append([Append(lease, event, 3, mark=mark)]) == [True]


async def test_marks_show_each_run(backend: Backend, request_: Request) -> None:
    stay = Stay(1.5, Backlog(2, (0, 1, 0), 1, 1, 9, 9), ((2.5, 1),), ((2.0, 2.25), (2.5, None)))
    first = await begin(backend, request_, "a", 1, stay)
    await write(backend, first, token_event(0, "x"), MARK)
    await write(backend, first, token_event(1, "y"))
    preempted = RunMark(3, 0.25, 0.5, 1, 0.125)
    await write(backend, first, token_event(2, "z"), preempted)
    second = await begin(backend, request_, "b", 2)
    await write(backend, second, token_event(3, "w"), MARK)
    found = await backend.token_log.marks(request_.id)
    assert found is not None
    assert [(run.worker, run.attempt, run.next_seq, run.mark) for run in found.runs] == [
        ("a", 1, 0, preempted),
        ("b", 2, 3, MARK),
    ]
    assert found.stay == stay
    one, two = found.runs
    assert found.record.started_at == one.acquired_at
    assert found.record.first_token_at is not None and two.logged_at is not None and two.first_append_at is not None
    assert one.acquired_at <= found.record.first_token_at <= two.logged_at <= two.acquired_at <= two.first_append_at


async def test_marks_of_an_unknown_request_are_none(backend: Backend) -> None:
    assert await backend.token_log.marks("req_x") is None


async def test_marks_are_bounded(backend: Backend, request_: Request) -> None:
    for number in range(3 * MAX_RUNS):
        lease = await begin(backend, request_, f"w{number}", 1)
        await write(backend, lease, token_event(number, "x"), MARK)
    found = await backend.token_log.marks(request_.id)
    assert found is not None
    last = [f"w{number}" for number in range(2 * MAX_RUNS + 1, 3 * MAX_RUNS)]
    assert [run.worker for run in found.runs] == ["w0", *last]


async def test_marks_expire_with_the_answer(on_redis: Backend, settings: Settings) -> None:
    """They are part of the state: no other key is made, and no field of an old run stays."""
    request = make_request()
    assert await on_redis.token_log.create(request)
    for number in range(3 * MAX_RUNS):
        lease = await begin(on_redis, request, f"w{number}", 1)
        await write(on_redis, lease, token_event(number, "x"), MARK)
    await write(on_redis, lease, TokenEvent(3 * MAX_RUNS, (), DONE))
    assert {key.decode() for key in await on_redis.redis.keys("*")} == {
        keys.state(request.id),
        keys.log(request.id),
    }
    assert 0 < await on_redis.redis.pttl(keys.state(request.id)) <= settings.result_ttl * 1000
    fields = await on_redis.redis.hkeys(keys.state(request.id))
    assert sum(field.startswith((b"run:", b"mark:", b"first:")) for field in fields) <= 3 * MAX_RUNS
    await on_redis.redis.delete(keys.state(request.id))
    assert await on_redis.token_log.marks(request.id) is None


@pytest.mark.parametrize(
    "foreign",
    [
        {"run:1": "not a run"},
        {"run:1": "nan 1 0 - w"},
        {"run:1": "1e308 1 0 - w"},
        {"run:1": "1 1 0 inf w"},
        {"run:1": "1 1 0 - \x1b[2J"},
        {"run:1": f"1 1 0 - {'w' * 300}"},
        {"first:1": "nan"},
        {"mark:1": "inf [0,0,0]"},
        {"logged_at": "-1e300"},
        {f"run:{epoch}": "1 1 0 - w" for epoch in range(100)},
    ],
)
async def test_foreign_marks_leave_the_record(on_redis: Backend, foreign: dict[str, str]) -> None:
    request = make_request()
    assert await on_redis.token_log.create(request)
    await begin(on_redis, request, "a", 1)
    await on_redis.redis.hset(keys.state(request.id), mapping=foreign)
    found = await on_redis.token_log.marks(request.id)
    assert found is not None
    assert (found.record.id, found.runs) == (request.id, ())


@pytest.mark.parametrize("name", ["created_at", "first_token_at", "deadline"])
async def test_a_record_with_a_foreign_time_is_unknown(on_redis: Backend, name: str) -> None:
    request = make_request()
    assert await on_redis.token_log.create(request)
    await on_redis.redis.hset(keys.state(request.id), name, "nan")
    assert await on_redis.token_log.record(request.id) is None
    assert await on_redis.token_log.marks(request.id) is None


async def test_a_request_that_ended_in_the_queue_keeps_its_stay(backend: Backend) -> None:
    request, stay = make_request(), Stay(1.5, None, (), ((2.0, None),))
    assert await backend.token_log.create(request)
    await backend.token_log.close(request.id)
    await backend.token_log.note_stay(request.id, stay)
    await backend.token_log.note_stay("req_x", stay)
    found = await backend.token_log.marks(request.id)
    assert found is not None and found.stay == stay
    assert await backend.token_log.marks("req_x") is None


async def test_a_request_past_its_deadline_keeps_its_stay(backend: Backend) -> None:
    request, stay = make_request(deadline=1.0), Stay(1.5)
    assert await backend.token_log.create(request)
    assert await backend.token_log.acquire([request.id], "a", [1], stays=[stay]) == [None]
    found = await backend.token_log.marks(request.id)
    assert found is not None and (found.stay, found.runs) == (stay, ())

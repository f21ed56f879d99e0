"""Leases of a token log: takeovers, lost workers and the evidence against a request."""

from __future__ import annotations

import pytest

from shared.backend import Backend
from shared.protocol import Request, TokenEvent
from shared.redis import keys
from shared.token_log.interface import Append, Lease
from tests.support.fakes import token_event
from tests.support.log_calls import DONE, acquire, append, created, recorded


async def test_a_worker_without_the_lease_cannot_write(backend: Backend, request_: Request) -> None:
    first = await acquire(backend, request_, "a")
    assert await append(backend, first, token_event(0, "a"))

    second = await acquire(backend, request_, "b")

    assert (second.epoch, second.next_seq, second.history) == (first.epoch + 1, 1, (token_event(0, "a"),))
    assert not await append(backend, first, token_event(1, "x"))
    assert not await append(backend, first, token_event(0, "a"))
    assert await append(backend, second, token_event(1, "b"))


async def test_the_next_worker_gets_the_recorded_prompt(backend: Backend, request_: Request) -> None:
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


async def lose(backend: Backend, request: Request, attempts: int) -> list[int]:
    """Acquire a request in `attempts` successive attempts. Returns the losses that each lease reports."""
    told = []
    for attempt in range(1, attempts + 1):
        [lease] = await backend.token_log.acquire([request.id], str(attempt), [attempt])
        assert lease is not None
        told.append(lease.losses)
    return told


async def test_lost_workers_count_but_handovers_do_not(backend: Backend, request_: Request) -> None:
    assert await lose(backend, request_, 3) == [0, 1, 2]
    [again] = await backend.token_log.acquire([request_.id], "x", [3])
    assert again is not None
    assert again.losses == 2
    [fourth] = await backend.token_log.acquire([request_.id], "y", [4])
    assert fourth is not None
    assert fourth.losses == 3


async def test_a_token_on_the_last_attempt_proves_innocence(backend: Backend, request_: Request) -> None:
    """Progress before the last attempt does not reset the count; progress on it does."""
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
    """Acquire a lease for an attempt whose worker is then lost."""
    [lease] = await backend.token_log.acquire([request.id], f"w{attempt}", [attempt], alone=alone)
    assert lease is not None
    return lease


async def test_workers_lost_alone_are_counted_in_a_row(backend: Backend, request_: Request) -> None:
    told = [
        (await lost(backend, request_, n, alone=alone)).lost_alone for n, alone in enumerate([1, 0, 1, 1, 1], 1)
    ]
    assert told == [0, 1, 0, 1, 2]


async def test_a_token_from_the_last_worker_clears_the_evidence(backend: Backend, request_: Request) -> None:
    """A token before the first loss does not matter; a token before the second clears the evidence."""
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
    """A worker that takes its own request again counts as an attempt, but not as lost alone."""
    leases = [
        lease
        for attempt in (1, 2, 3)
        for lease in await backend.token_log.acquire([request_.id], "a", [attempt], alone=True)
    ]
    assert [(lease.losses, lease.lost_alone) for lease in leases if lease] == [(0, 0), (1, 0), (2, 0)]


async def test_only_the_holder_can_record_that_it_runs_alone(backend: Backend, request_: Request) -> None:
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


async def test_an_epoch_given_twice_belongs_to_its_last_owner(backend: Backend, request_: Request) -> None:
    """If a store that lost its last second gives an epoch twice, the former owner is refused."""
    lease = await acquire(backend, request_, "a")
    twin = Lease(lease.job_id, "b", lease.epoch, lease.acquired_at)
    assert not await append(backend, twin, token_event(0, "x"))
    together = [Append(lease, token_event(0, "a"), 3), Append(twin, token_event(1, "x"), 3)]
    assert await backend.token_log.append(together) == [True, False]

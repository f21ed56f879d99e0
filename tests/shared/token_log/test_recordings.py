"""Recordings: kept with a completed answer, as long as it, and by no worker that lost its lease."""

from __future__ import annotations

import pytest

from shared.backend import Backend
from shared.protocol import Recording, Request, TokenEvent, encode
from shared.redis import keys
from shared.token_log.interface import Append, Lease
from tests.support.fakes import token_event
from tests.support.log_calls import DONE, acquire, append, created


def recording_of(request: Request) -> Recording:
    return Recording(request=request, prompt=(7, 65_536), fingerprint="fp_1", computation={"torch": "2"}, runs=2)


async def complete(backend: Backend, lease: Lease, request: Request) -> bool:
    event = TokenEvent(1, (), DONE)
    [written] = await backend.token_log.append(
        [Append(lease, event, 3, (), recording=encode(recording_of(request)))]
    )
    return written


async def test_a_recording_is_kept_with_the_answer(backend: Backend, request_: Request) -> None:
    fenced, lease = await acquire(backend, request_), await acquire(backend, request_, "b")
    assert await append(backend, lease, token_event(0, "a"))
    assert not await complete(backend, fenced, request_)
    assert await backend.token_log.recording(request_.id) is None
    assert await complete(backend, lease, request_)
    assert await backend.token_log.recording(request_.id) == recording_of(request_)
    await backend.token_log.forget(request_.id)
    assert await backend.token_log.recording(request_.id) is None
    assert await backend.token_log.recording("req_unknown") is None


async def test_a_recording_expires_with_the_answer(on_redis: Backend) -> None:
    request = await created(on_redis)
    lease = await acquire(on_redis, request)
    assert await append(on_redis, lease, token_event(0, "a"))
    assert await complete(on_redis, lease, request)
    answer, kept = [await on_redis.redis.pttl(key(request.id)) for key in (keys.log, keys.recording)]
    assert answer > 0
    assert abs(answer - kept) < 1000


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"\xff", b'{"request": 1}'])
async def test_junk_is_no_recording(on_redis: Backend, junk: bytes) -> None:
    await on_redis.redis.hset(keys.recording("req_1"), "data", junk)
    assert await on_redis.token_log.recording("req_1") is None

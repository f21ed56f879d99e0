"""Calls on a token log."""

from __future__ import annotations

from shared.backend import Backend
from shared.protocol import Request, RequestState, Terminal, TokenEvent, Usage
from shared.token_log.interface import Append, Lease
from tests.support.fakes import make_request

DONE = Terminal(RequestState.COMPLETED, Usage(3, 2))


async def created(backend: Backend) -> Request:
    request = make_request(created_at=await backend.token_log.now())
    assert await backend.token_log.create(request)
    return request


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

"""Path of a request through a Backend without an engine: queue, lease, token log, live messages, registry."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from shared.backend import Backend
from shared.errors import HeadraceError
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Request, RequestState, Terminal, TokenEvent, Usage
from shared.queue.interface import Delivery, Room
from shared.token_log.interface import Append, Lease
from tests.support.fakes import MODEL, answer, make_request, submit, token_event

DONE = Terminal(RequestState.COMPLETED, Usage(3, 2))


async def hold(backend: Backend, number: int = 1) -> list[tuple[Delivery, Lease]]:
    """Submit requests and pull them as worker "w"."""
    for _ in range(number):
        await submit(backend, make_request())
    held = []
    for item in (await backend.transport.pull(MODEL, "w", Room.all(number))).found:
        assert isinstance(item, Delivery)
        [lease] = await backend.token_log.acquire([item.request.id], "w")
        assert lease is not None
        held.append((item, lease))
    assert len(held) == number
    return held


async def write(backend: Backend, leases: list[Lease], event: TokenEvent) -> list[bool]:
    return await backend.token_log.append([Append(lease, event, 3) for lease in leases])


async def whole_path(backend: Backend, number: int = 8) -> None:
    """Run requests from submit to end; check that readers from before the first token get all of each answer."""
    await backend.registry.beat(WorkerInfo(id="w", pid=1, model=MODEL, state="ready", max_model_len=64))
    assert [worker.id for worker in await backend.registry.workers()] == ["w"]
    assert [model.name for model in await backend.registry.models()] == [MODEL]
    held = await hold(backend, number)
    leases = [lease for _, lease in held]
    readers = [asyncio.create_task(answer(backend, lease.job_id)) for lease in leases]
    assert all(await write(backend, leases, token_event(0, "a", "b")))
    assert all(await write(backend, leases, TokenEvent(2, (), DONE)))
    assert not any(await write(backend, leases, token_event(3, "late")))
    expected = [token_event(0, "a", "b"), TokenEvent(2, (), DONE)]
    assert await asyncio.gather(*readers) == [expected] * number
    assert await backend.transport.renew(MODEL, "w", [item.claim for item, _ in held]) == []
    for item, _ in held:
        await backend.transport.acknowledge([item.claim])
    depth = await backend.transport.depth(MODEL)
    assert (depth.waiting, depth.held) == (0, 0)
    await backend.registry.leave("w")
    assert await backend.registry.workers() == []


async def cancelled(backend: Backend) -> Request:
    """Submit a request and cancel it while it waits."""
    request = make_request()
    ticket = await submit(backend, request)
    assert await backend.token_log.close(request.id) is not None
    await backend.transport.discard(ticket)
    return request


async def collect(backend: Backend, job_id: str) -> list[TokenEvent]:
    """Return the events of an answer, followed as a client does: with a new reader after an error."""
    found: list[TokenEvent] = []
    while not (found and found[-1].terminal):
        try:
            async with aclosing(backend.token_log.follow(job_id, len(found) - 1, idle=1)) as events:
                found += [event async for event in events if event is not None]
        except HeadraceError:
            await asyncio.sleep(0.05)
    return found

"""Requests for a model that cannot be served are refused by a worker of their own."""

from __future__ import annotations

import asyncio

import pytest

from shared.backend import Backend
from shared.errors import ModelNotFound
from shared.models.worker_registry import WorkerInfo
from shared.protocol import RequestState
from shared.queue.interface import Room
from shared.redis import keys
from shared.repository.spec import ModelSpec
from shared.settings import Settings
from tests.support.fakes import MODEL, make_request, submit
from tests.support.waiting import LIMIT_S
from workers.metrics import WorkerMetrics
from workers.repository.hosted_model import HostedModel
from workers.repository.plan import Plan
from workers.repository.refusal import refuse_waiting
from workers.repository.serving.context import HostContext
from workers.repository.serving.interface import Serving
from workers.repository.serving.memory_budget import MemoryBudget


def context_of(settings: Settings, backend: Backend) -> HostContext:
    budget = MemoryBudget(0, lambda _: [], lambda _: True)
    return HostContext(settings, backend, WorkerMetrics(), budget, lambda: None, lambda _: None)


async def end_by_cancelling(task: asyncio.Task[None], may_end: asyncio.Event) -> None:
    """Cancel a task, let it reach its next wait, which `may_end` ends, and see it end cancelled."""
    task.cancel()
    await asyncio.sleep(0)
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_refusal_leaves_no_worker_behind(
    settings: Settings, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given one that is cancelled while its worker leaves, whose entry looks like that of a worker which loads."""
    context = context_of(settings, backend)
    leave, leaving, may_leave = backend.registry.leave, asyncio.Event(), asyncio.Event()

    async def leave_late(worker_id: str) -> None:
        leaving.set()
        await may_leave.wait()
        await leave(worker_id)

    monkeypatch.setattr(backend.registry, "leave", leave_late)
    refusing = asyncio.create_task(refuse_waiting("m", ModelNotFound("it is gone"), context))
    async with asyncio.timeout(LIMIT_S):
        await leaving.wait()
        await end_by_cancelling(refusing, may_leave)
    assert await backend.registry.workers() == []


async def test_a_refusal_ends_when_another_worker_serves_the_model(settings: Settings, backend: Backend) -> None:
    """It takes none of that worker's requests, leaves the claim of the model to it, and announces nothing."""
    context, refused, served = context_of(settings, backend), make_request(), make_request()
    await submit(backend, refused)
    async with asyncio.timeout(LIMIT_S):
        async with backend.live.subscribe(keys.live_channel(refused.id)) as ends:
            refusing = asyncio.create_task(refuse_waiting(MODEL, ModelNotFound("it is gone"), context))
            await ends.get(LIMIT_S)
            assert await backend.locks.acquire(f"model-claim:{MODEL}", b"native fp", 9) == b"native fp"
            await backend.registry.beat(WorkerInfo(id="other", pid=1, model=MODEL, state="loading"))
            await submit(backend, served)
            await backend.transport.pull(MODEL, "other", Room.all(1))
        await refusing
    record = await backend.token_log.record(served.id)
    assert record is not None and record.state is RequestState.QUEUED
    assert await backend.registry.models() == []


async def test_a_model_ends_while_it_waits_for_its_refusal_to_end(
    settings: Settings, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a host that stops when the model shall be loaded, and requests for it are still being refused."""
    attending, ending, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def attend(*_: object) -> None:
        attending.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await may_end.wait()

    def load(*_: object) -> Serving:
        raise AssertionError("the host stops")

    async def need(_: str) -> None: ...

    monkeypatch.setattr("workers.repository.hosted_model.wait_for_requests", attend)
    model = HostedModel(Plan("m"), context_of(settings, backend), load, need)
    running = asyncio.create_task(model.run())
    async with asyncio.timeout(LIMIT_S):
        await attending.wait()
        model.update(Plan("m", spec=ModelSpec(name="m"), wanted=True), asleep=False)
        await ending.wait()
        await end_by_cancelling(running, may_end)

"""Requests for a model that cannot be served are refused by a worker of their own."""

from __future__ import annotations

import asyncio

import pytest

from shared.backend import Backend
from shared.errors import ModelNotFound
from shared.settings import Settings
from tests.support.waiting import LIMIT_S
from workers.metrics import WorkerMetrics
from workers.repository.refusal import refuse_waiting
from workers.repository.serving.context import HostContext
from workers.repository.serving.memory_budget import MemoryBudget


async def test_a_cancelled_refusal_leaves_no_worker_behind(
    settings: Settings, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given one that is cancelled while its worker leaves, whose entry looks like that of a worker which loads."""
    budget = MemoryBudget(0, lambda _: [], lambda _: True)
    context = HostContext(settings, backend, WorkerMetrics(), budget, lambda: None, lambda _: None)
    leave, leaving, may_leave = backend.registry.leave, asyncio.Event(), asyncio.Event()

    async def leave_late(worker_id: str) -> None:
        leaving.set()
        await may_leave.wait()
        await leave(worker_id)

    monkeypatch.setattr(backend.registry, "leave", leave_late)
    refusing = asyncio.create_task(refuse_waiting(context.new_worker("m"), ModelNotFound("it is gone"), context))
    async with asyncio.timeout(LIMIT_S):
        await leaving.wait()
        refusing.cancel()
        await asyncio.sleep(0)
        may_leave.set()
        with pytest.raises(asyncio.CancelledError):
            await refusing
    assert await backend.registry.workers() == []

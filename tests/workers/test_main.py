"""Start of the worker process."""

from __future__ import annotations

import asyncio
import sys

import pytest

from shared.backend import Backend
from shared.errors import ConfigError
from shared.models.worker_registry import WorkerInfo
from shared.settings import Settings
from tests.support.backends import opened
from tests.support.fakes import MODEL
from workers.main import run


def test_a_worker_whose_weight_differs_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before it loads its model, and leaves no trace."""
    monkeypatch.setattr("workers.main.SWITCH_INTERVAL_S", sys.getswitchinterval())
    other = WorkerInfo(id="other", pid=1, model=MODEL, state="ready", weight=2)

    async def announce() -> None:
        backend = await opened("redis", settings)
        await backend.registry.beat(other)
        await backend.close()

    async def registered() -> list[WorkerInfo]:
        backend = Backend.open(settings)
        found = await backend.registry.workers()
        await backend.close()
        return found

    asyncio.run(announce())
    with pytest.raises(ConfigError, match="not set here and 2 at the worker other"):
        run(settings.model_copy(update={"routing": "weighted-round-robin"}))
    assert [worker.id for worker in asyncio.run(registered())] == [other.id]

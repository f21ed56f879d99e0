"""These tests need a server, so `backend` is on Redis only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from producer_api.background.sweeper import Sweeper
from shared.backend import Backend
from tests.support.fakes import one_model


@pytest.fixture
def backend(on_redis: Backend) -> Backend:
    return on_redis


@pytest.fixture
async def sweeping(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Task[None]]:
    monkeypatch.setattr("producer_api.background.sweeper.ROUND_S", 0.05)
    task = asyncio.create_task(Sweeper(backend, one_model).run())
    yield task
    assert not task.done()
    task.cancel()

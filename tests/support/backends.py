"""Empty backends for tests of contracts, and the fixtures that a conftest.py takes over by importing them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared.backend import Backend
from shared.settings import Settings


async def opened(kind: str, settings: Settings) -> Backend:
    """Return an empty backend of a kind, "memory" or "redis"."""
    if kind == "memory":
        return Backend.memory(settings)
    backend = Backend.open(settings)
    await backend.start()
    await backend.redis.flushall()
    return backend


@pytest.fixture(params=["redis", "memory"])
async def backend(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[Backend]:
    """Open a backend of each kind."""
    made = await opened(request.param, settings)
    yield made
    await made.close()


@pytest.fixture
async def on_redis(settings: Settings) -> AsyncIterator[Backend]:
    """Open a backend on Redis, for faults that only a server can have."""
    made = await opened("redis", settings)
    yield made
    await made.close()

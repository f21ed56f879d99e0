"""Backends for contract tests, on a real server and in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from shared.backend import Backend
from shared.settings import Settings
from tests.support.backends import opened


@pytest.fixture(params=["redis", "memory"])
async def backend(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[Backend]:
    made = await opened(request.param, settings)
    yield made
    await made.close()


@pytest.fixture
async def on_redis(settings: Settings) -> AsyncIterator[Backend]:
    """Open a backend on Redis, for faults that only a server can have."""
    made = await opened("redis", settings)
    yield made
    await made.close()


@pytest.fixture
async def backend_of() -> AsyncIterator[Callable[[str, Settings], Awaitable[Backend]]]:
    """Open backends with other settings."""
    made: list[Backend] = []

    async def make(kind: str, settings: Settings) -> Backend:
        made.append(await opened(kind, settings))
        return made[-1]

    yield make
    for backend in made:
        await backend.close()

"""Every contract holds on a real server and in memory alike."""

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
    """For what only a server can suffer."""
    made = await opened("redis", settings)
    yield made
    await made.close()


@pytest.fixture
async def backend_of() -> AsyncIterator[Callable[[str, Settings], Awaitable[Backend]]]:
    """For tests that need settings of their own."""
    made: list[Backend] = []

    async def make(kind: str, settings: Settings) -> Backend:
        made.append(await opened(kind, settings))
        return made[-1]

    yield make
    for backend in made:
        await backend.close()

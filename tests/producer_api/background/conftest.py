"""Backends for the sweeper, which works the same on a real server and in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

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
    """A backend for failures that only a server can have."""
    made = await opened("redis", settings)
    yield made
    await made.close()

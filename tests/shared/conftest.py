"""Backends for contract tests, on a real server and in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from shared.backend import Backend
from shared.settings import Settings
from tests.support.backends import backend, on_redis, opened

__all__ = ["backend", "backend_of", "on_redis"]


@pytest.fixture
async def backend_of() -> AsyncIterator[Callable[[str, Settings], Awaitable[Backend]]]:
    """Open backends with other settings."""
    made: list[Backend] = []

    async def make(kind: str, settings: Settings) -> Backend:
        made.append(await opened(kind, settings))
        return made[-1]

    yield make
    for each in made:
        await each.close()

"""Empty backends on Redis and in memory, for tests that run against both."""

from __future__ import annotations

from shared.backend import Backend
from shared.settings import Settings


async def opened(kind: str, settings: Settings) -> Backend:
    """Open an empty backend of the kind `redis` or `memory`."""
    if kind == "memory":
        return Backend.memory(settings)
    backend = Backend.open(settings)
    await backend.start()
    await backend.redis.flushall()
    return backend

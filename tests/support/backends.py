"""Empty backends for tests of contracts."""

from __future__ import annotations

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

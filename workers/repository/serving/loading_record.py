"""Record of loads that ended their worker process, so that they are not repeated for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from shared.backend import Backend
from shared.errors import ConfigError, Unavailable
from workers.repository.serving.memory_budget import Holder

log = structlog.get_logger(__name__)


@asynccontextmanager
async def recorded_load(backend: Backend, holder: Holder, worker_id: str, most: int) -> AsyncIterator[None]:
    """Load a version in the body.

    Args:
        worker_id: of a worker whose heartbeats are sent while it loads.
        most: losses after which the version is not loaded again, until its files or its order change.

    Raises ConfigError if `most` workers were lost while they loaded the version; Unavailable.
    """
    load = f"{holder.model}:{holder.version}:{holder.stamp}"
    begun = await backend.repository.begin_load(load, worker_id)
    try:
        alive = {worker.id for worker in await backend.registry.workers()} | {worker_id}
        lost = begun - alive
        if len(lost) >= most:
            raise ConfigError(
                f"loading {holder} has ended {len(lost)} worker processes, perhaps for lack of memory: change its "
                "files or its description, or order to load it again"
            )
        yield
        await backend.repository.end_load(load, [*lost])
    finally:
        try:
            await backend.repository.end_load(load, [worker_id])
        except Unavailable as error:  # it expires
            log.warning("load_not_recorded", model=holder.model, error=error.message)

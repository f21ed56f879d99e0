"""Record of loads that ended their worker process, so that they are not repeated for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from shared.backend import Backend
from shared.errors import ConfigError, Unavailable
from workers.repository.serving.memory_budget import Holder

log = structlog.get_logger(__name__)


class LoadingRecord:
    """Loads of one process. A version under whose loading a worker was lost loads alone, so that its neighbours are
    not blamed for it.

    Args:
        most: losses after which a version is not loaded again, until its files or its order change.
    """

    def __init__(self, backend: Backend, most: int) -> None:
        self._backend = backend
        self._most = most
        self._loading = 0
        self._alone = False
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def loading(self, holder: Holder, worker_id: str) -> AsyncIterator[None]:
        """Load a version in the body.

        Args:
            worker_id: of a worker whose heartbeats are sent while it loads.

        Raises ConfigError if `most` workers were lost while they loaded the version; Unavailable.
        """
        load = f"{holder.model}:{holder.version}:{holder.stamp}"
        lost = await self._losses(load, worker_id)
        if len(lost) >= self._most:
            raise ConfigError(
                f"loading {holder} has ended {len(lost)} worker processes, perhaps for lack of memory: change its "
                "files or its description, or order to load it again"
            )
        async with self._turn(alone=bool(lost)):
            await self._backend.repository.begin_load(load, worker_id)
            try:
                yield
                await self._backend.repository.end_load(load, [*lost])
            finally:
                await self._end(load, worker_id)

    async def _losses(self, load: str, worker_id: str) -> frozenset[str]:
        """Return the workers that were lost while they loaded something."""
        begun = await self._backend.repository.begin_load(load, worker_id)
        await self._end(load, worker_id)
        return begun - {worker.id for worker in await self._backend.registry.workers()} - {worker_id}

    async def _end(self, load: str, worker_id: str) -> None:
        try:
            await self._backend.repository.end_load(load, [worker_id])
        except Unavailable as error:  # it expires
            log.warning("load_not_recorded", load=load, error=error.message)

    @asynccontextmanager
    async def _turn(self, *, alone: bool) -> AsyncIterator[None]:
        """Wait for the loads that cannot run beside this one."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone and not (alone and self._loading))
            self._loading += 1
            self._alone = alone
        try:
            yield
        finally:
            async with self._changed:
                self._loading -= 1
                self._alone = False
                self._changed.notify_all()

"""A worker of one model while it runs beside others in the process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from shared.models.worker_registry import WorkerInfo
from shared.settings import Settings
from workers.engine.interface import Generator
from workers.health.watchdog import EngineHung
from workers.repository.serving.context import HostContext
from workers.worker import Worker

log = structlog.get_logger(__name__)


class RunningWorker:
    """Runs a worker until it is drained.

    Args:
        on_failure: called with the reason if its engine fails; its requests are taken over when their leases end.
            An engine that hangs ends the process instead, since its thread cannot be stopped.
    """

    def __init__(
        self,
        info: WorkerInfo,
        engine: Generator,
        settings: Settings,
        context: HostContext,
        on_failure: Callable[[str], None],
    ) -> None:
        self.info = info
        self._context = context
        self._on_failure = on_failure
        self._worker = Worker(
            info, engine, context.backend, settings, context.metrics, sole_request=context.workers.sole_request
        )
        self._task = asyncio.create_task(self._run(), name=f"worker-{info.model}")

    @property
    def holds_requests(self) -> bool:
        return bool(self._worker.active_requests())

    @property
    def used_at(self) -> float:
        return self._worker.used_at

    async def drain(self, grace: float | None = None) -> None:
        """Finish its requests within the grace time, hand back the others, and end."""
        self._worker.drain(grace)
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            async with self._context.workers.present(self._worker, self.info.model):
                await self._worker.run()
        except BaseExceptionGroup as group:
            error = first_of(group)
            if isinstance(error, EngineHung):
                self._context.failed(error)
            elif isinstance(error, Exception):
                log.error("model_failed", model=self.info.model, worker=self.info.id, error=repr(error))
                self._on_failure(f"its engine failed: {error!r}")
            else:
                raise


def first_of(error: BaseException) -> BaseException:
    """Return the first error in nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

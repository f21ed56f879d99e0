"""Workers of one model on simulated engines, all in this process, with the real queue and token log."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from headrace.bench.routing.simulated_engine import Counts, Device, SimulatedEngine
from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.settings import Settings, load
from workers.metrics import WorkerMetrics
from workers.worker import Worker

MODEL = "simulated"


def fleet_settings(redis_url: str, policy: str, slowdown: float = 1.0) -> Settings:
    """Return the settings of a fleet, whose workers hand their requests back as soon as they stop.

    With `slowdown`, the times that depend on the speed of engines are so many times as long.
    """
    given = {"redis_url": redis_url, "redis_timeout": 30, "routing": policy, "grace": 0, "model": MODEL}
    settings = load(given).settings
    longer = {name: getattr(settings, name) * slowdown for name in ("lease", "routing_patience")}
    return settings.model_copy(update=longer)


class Fleet:
    """Running workers, and the backend of their clients.

    Attributes:
        engines: by the id of the worker.
    """

    def __init__(
        self, settings: Settings, backend: Backend, stack: AsyncExitStack, tasks: asyncio.TaskGroup
    ) -> None:
        self.settings = settings
        self.backend = backend
        self.engines: dict[str, SimulatedEngine] = {}
        self._stack = stack
        self._tasks = tasks
        self._workers: list[Worker] = []

    async def add(self, device: Device, weight: float | None = None) -> None:
        """Start a worker with connections of its own."""
        engine = SimulatedEngine(device)
        info = WorkerInfo(
            id=f"worker-{len(self.engines) + 1}",
            pid=os.getpid(),
            model=MODEL,
            state="ready",
            max_model_len=engine.max_model_len,
            fingerprint=engine.fingerprint,
            max_num_seqs=device.seats,
            weight=weight,
        )
        settings = self.settings.model_copy(update={"max_num_seqs": device.seats})
        worker = Worker(info, engine, await opened(settings, self._stack), settings, WorkerMetrics())
        self.engines[info.id] = engine
        self._workers.append(worker)
        await self.backend.registry.beat(info)  # publishers read it before the worker's first heartbeat
        self._tasks.create_task(worker.run())

    def stop(self) -> None:
        for worker in self._workers:
            worker.drain()

    def counts(self) -> dict[str, Counts]:
        """Return the counters of each worker's engine."""
        return {name: engine.counts() for name, engine in self.engines.items()}

    def workers_of_jobs(self) -> dict[str, str]:
        """Return the worker that ran each job last, by the id of the job."""
        return {
            run_id.partition("/")[0]: worker for worker, engine in self.engines.items() for run_id in engine.run_ids
        }


async def opened(settings: Settings, stack: AsyncExitStack) -> Backend:
    """Open a backend that `stack` closes."""
    backend = Backend.open(settings)
    stack.push_async_callback(backend.close)
    await backend.start()
    return backend


@asynccontextmanager
async def running_fleet(settings: Settings) -> AsyncIterator[Fleet]:
    """Yield a fleet without workers on an emptied Redis; its workers stop with the body.

    If a worker fails, the body is cancelled and this raises the failure, in a group.
    """
    async with AsyncExitStack() as stack:
        backend = await opened(settings, stack)
        await backend.redis.execute_command("FLUSHALL", "SYNC")  # type: ignore[no-untyped-call]
        async with asyncio.TaskGroup() as tasks:
            fleet = Fleet(settings, backend, stack, tasks)
            try:
                yield fleet
            finally:
                fleet.stop()

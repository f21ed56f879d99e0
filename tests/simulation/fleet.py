"""Worker processes whose number an autoscaler of the simulation decides, as in a simulated run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headrace.sim.autoscaler import SYNC_S, Autoscaler, Observation
from headrace.sim.outcome import Outcome, Sample
from shared.backend import Backend
from tests.support.cluster import Cluster
from tests.support.departures import order_to_leave
from tests.support.node import Node

WAKE_POLL_S = 0.05  # KEDA's stream reports a first request at once
MODEL = "scripted"


class Fleet:
    """Workers of a cluster. It fills in an outcome's samples, starts and worker seconds.

    Attributes:
        cold_starts: seconds from each worker's start until it was ready.
    """

    def __init__(self, cluster: Cluster, backend: Backend, autoscaler: Autoscaler, outcome: Outcome) -> None:
        self.cold_starts: list[float] = []
        self._cluster = cluster
        self._backend = backend
        self._autoscaler = autoscaler
        self._outcome = outcome
        self._running: list[tuple[Node, float]] = []  # with the time of the start, oldest first
        self._starting: set[asyncio.Task[None]] = set()
        self._began = 0.0

    @asynccontextmanager
    async def scaled(self) -> AsyncIterator[None]:
        """Scale while the body runs. The workers that the autoscaler begins with are ready before."""
        self._start(self._autoscaler.initial)
        await asyncio.gather(*self._starting)
        self.cold_starts.clear()  # they were not waited for by any request
        self._began = time.monotonic()
        self._running = [(worker, self._began) for worker, _ in self._running]
        task = asyncio.create_task(self._scale())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, *self._starting, return_exceptions=True)
            now = time.monotonic()
            self._outcome.seconds = now - self._began
            self._outcome.worker_seconds += sum(now - since for _, since in self._running)

    async def _scale(self) -> None:
        syncs = 0
        while True:
            while (left := self._began + (syncs + 1) * SYNC_S - time.monotonic()) > 0:
                await asyncio.sleep(min(left, WAKE_POLL_S) if not self._running else left)
                if not self._running and (seen := await self._observe())[0].waiting:
                    await self._resize(self._autoscaler.wake(seen[0]))
            syncs += 1
            seen, age = await self._observe()
            ready = sum(worker.ready for worker, _ in self._running)
            self._outcome.samples.append(Sample(seen.at, seen.replicas, ready, seen.waiting, age))
            await self._resize(self._autoscaler.decide(seen))

    async def _observe(self) -> tuple[Observation, float]:
        """Return what an autoscaler sees, but for the utilization, and the age of the oldest waiting request."""
        depth = await self._backend.transport.depth(MODEL)
        at = time.monotonic() - self._began
        return Observation(at, len(self._running), (), depth.waiting, depth.held), depth.oldest_age

    async def _resize(self, wanted: int) -> None:
        self._start(wanted - len(self._running))
        while len(self._running) > wanted:
            worker, since = self._running.pop()
            await worker.serving()
            await order_to_leave(worker, self._cluster.store.url)
            await worker.ended()
            self._outcome.worker_seconds += time.monotonic() - since

    def _start(self, count: int) -> None:
        for _ in range(count):
            worker = self._cluster.add("worker", self._cluster.apis[0].environment)
            worker.spawn()
            self._running.append((worker, time.monotonic()))
            self._outcome.started += 1
            task = asyncio.create_task(self._await_ready(worker))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _await_ready(self, worker: Node) -> None:
        began = time.monotonic()
        await worker.serving()
        self.cold_starts.append(time.monotonic() - began)

"""Time that a policy adds to a publish and to a pull of the queue, in pairs with `pull`."""

from __future__ import annotations

import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

from headrace.bench.routing.fleet import MODEL, fleet_settings, opened
from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Message, PriorityClass, Request, SamplingParams, new_job_id
from shared.queue.interface import Room

PAIRS = 5
WAITING = 200  # requests at the beginning of a run; half of them are pulled
WORKERS = [f"worker-{number}" for number in range(1, 5)]
ROOM = Room(8, dict.fromkeys(PriorityClass, 1))


@dataclass(frozen=True)
class QueueCost:
    """Seconds of a call: the median of a run, or the difference of two."""

    publish: float
    pull: float


async def measure_added(redis_url: str, policy: str) -> QueueCost:
    """Return what a policy adds to a call, as the median over PAIRS of runs."""
    async with AsyncExitStack() as stack:
        base, routed = [await opened(fleet_settings(redis_url, name), stack) for name in ("pull", policy)]
        added = []
        for number in range(PAIRS):
            if number % 2:
                cost, base_cost = await _run(routed), await _run(base)
            else:
                base_cost, cost = await _run(base), await _run(routed)
            added.append(QueueCost(cost.publish - base_cost.publish, cost.pull - base_cost.pull))
    return QueueCost(
        statistics.median(each.publish for each in added), statistics.median(each.pull for each in added)
    )


async def _run(backend: Backend) -> QueueCost:
    """Publish WAITING requests to an empty queue, and pull half of them, one at a time."""
    await backend.redis.execute_command("FLUSHALL", "SYNC")  # type: ignore[no-untyped-call]
    for worker in WORKERS:
        await backend.registry.beat(WorkerInfo(id=worker, pid=1, model=MODEL, state="ready", max_num_seqs=8))
        await backend.transport.pull(MODEL, worker, ROOM)
    publishes, pulls = [], []
    for number in range(WAITING):
        request = Request(
            id=new_job_id(),
            model=MODEL,
            messages=(Message("user", f"question {number} " * 20),),
            params=SamplingParams(max_tokens=64),
            user=f"user-{number}",
        )
        begin = time.perf_counter()
        await backend.transport.publish(request)
        publishes.append(time.perf_counter() - begin)
    for number in range(WAITING // 2):
        begin = time.perf_counter()
        found, _, _ = await backend.transport.pull(MODEL, WORKERS[number % len(WORKERS)], ROOM)
        pulls.append(time.perf_counter() - begin)
        await backend.transport.acknowledge([delivery.claim for delivery in found])
    return QueueCost(statistics.median(publishes), statistics.median(pulls))

"""Requests of two workers, one three times as fast as the other, under weighted-round-robin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headrace.bench.routing.clients import measure_throughput
from headrace.bench.routing.fleet import Fleet
from headrace.bench.routing.simulated_engine import Device
from headrace.bench.routing.workload import Session

SLOW, FAST = Device(), Device(speed=3.0)
CLIENTS = 20  # at a time; the two workers have 16 seats
WARMUP_S = 2.0  # in which the workers report their tokens/s


async def measure_ratio(
    fleet: Fleet, sessions: Iterator[Session], seconds: float, *, weights: Sequence[float | None]
) -> float:
    """Return how many requests the fast worker begins for each of the slow one."""
    for device, weight in zip((SLOW, FAST), weights, strict=True):
        await fleet.add(device, weight)
    run = await measure_throughput(fleet, sessions, clients=CLIENTS, warmup_s=WARMUP_S, seconds=seconds)
    slow, fast = run.requests.values()
    return fast / slow

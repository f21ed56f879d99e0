"""`headrace bench routing`: each routing policy on three loads, on simulated engines behind the real queue.

Redis, the queue, the workers, the token log and its readers are real. Only the engines are simulated: they take the
time of a GPU without using the cores, which one machine could not give to several models.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import uvloop
from rich.console import Console

from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.full_stack import full_stack
from headrace.bench.routing.clients import Throughput, measure_throughput
from headrace.bench.routing.fleet import Fleet, fleet_settings, running_fleet
from headrace.bench.routing.queue_cost import QueueCost, measure_added
from headrace.bench.routing.sessions import measure_moved
from headrace.bench.routing.simulated_engine import Device
from headrace.bench.routing.workload import LOADS
from shared.models.model_store import SCRIPTED
from shared.redis.embedded import EmbeddedServer
from shared.runtime.logging import configure_logging
from shared.settings import PolicyName, load

POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
BASE: PolicyName = "pull"  # what the other policies are compared with
WORKERS = 4
INSTANT = Device(step_s=0, row_s=0, prompt_token_s=0)
CLIENTS = 48  # at a time; the workers have 32 seats
WARMUP_S = 1.0
# Two unequal workers:
SPEEDS = (1.0, 3.0)
WEIGHTS = {"set": SPEEDS, "measured": (None, None)}
UNEQUAL_CLIENTS = 24  # at a time; the workers have 16 seats
UNEQUAL_WARMUP_S = 2.0  # in which they report their tokens/s


@dataclass
class Routing:
    """Results. What was not measured is empty.

    Attributes:
        runs: by load and policy, a run for each seed.
        moved: share of the sessions that a joining worker moves under consistent-hash, for each seed.
        ratios: requests of a worker for each one of a worker with a third of its speed, under weighted-round-robin,
            by the kind of weights, for each seed.
        added: what a policy adds to the calls of the queue, by policy.
        api_mib: memory of an idle API.
        foreign: share of the cores that other processes used.
    """

    runs: dict[str, dict[str, list[Throughput]]] = field(default_factory=dict)
    moved: list[float] = field(default_factory=list)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    added: dict[str, QueueCost] = field(default_factory=dict)
    api_mib: float = 0.0
    foreign: float = 0.0

    def gain(self, load: str, policy: str, base: str = BASE) -> float:
        """Return the tokens/s of a policy divided by those of another: the median over the seeds."""
        pairs = zip(self.runs[load][policy], self.runs[load][base], strict=True)
        return statistics.median(run.tokens_per_s / other.tokens_per_s for run, other in pairs)

    def as_dict(self) -> dict[str, Any]:
        gains = {load: {policy: self.gain(load, policy) for policy in found} for load, found in self.runs.items()}
        return {**asdict(self), "gains": gains}


def measure_routing(
    policies: Sequence[PolicyName], seconds: float, slowdown: float, repeats: int, seed: int, console: Console
) -> Routing:
    """Compare the policies with `pull`, on each load for `seconds`, with `repeats` seeds.

    Args:
        slowdown: how many times slower the simulated engines run. Seconds in the results are those of the engines,
            so that a busy machine, which `slowdown` leaves more time, changes them less.
    """
    configure_logging(load({"log_level": "warning"}).settings, process="bench")  # of the workers, to stderr
    compared = [policy for policy in POLICIES if policy == BASE or policy in policies]
    found = Routing()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        server = EmbeddedServer(Path(folder), appendfsync="no")  # the disk is not what is measured
        server.start()
        bench = _Bench(server.local_url, seconds, slowdown, console, found)
        try:
            with foreign_load() as during, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(bench.warm_up())
                for number in range(repeats):
                    turned = compared[number % len(compared) :] + compared[: number % len(compared)]
                    runner.run(bench.repeat(turned, seed + number))
                runner.run(bench.queue_costs(compared))
        finally:
            server.stop()
    found.foreign = during.share
    console.print("memory of an idle API")
    with full_stack(SCRIPTED, settings={"routing": compared[-1]}) as stack:
        found.api_mib = stack.rss_mib("api")
    return found


@dataclass(frozen=True)
class _Bench:
    """Runs on one Redis, whose results it adds to `found`."""

    redis_url: str
    seconds: float
    slowdown: float
    console: Console
    found: Routing

    async def warm_up(self) -> None:
        """Run one load without recording it: the first run is slower."""
        await self._run(BASE, next(iter(LOADS)), seed=-1)

    async def repeat(self, policies: Sequence[PolicyName], seed: int) -> None:
        """Measure everything once."""
        for kind in LOADS:
            for policy in policies:
                self.console.print(f"seed {seed}, {kind}: {policy}")
                run = await self._run(policy, kind, seed)
                self.found.runs.setdefault(kind, {}).setdefault(policy, []).append(run)
        if "consistent-hash" in policies:
            self.console.print(f"seed {seed}: a worker joins")
            self.found.moved.append(await self._join(seed))
        if "weighted-round-robin" in policies:
            for weights in WEIGHTS:
                self.console.print(f"seed {seed}: unequal workers, weights {weights}")
                self.found.ratios.setdefault(weights, []).append(await self._unequal(weights, seed))

    async def queue_costs(self, policies: Sequence[PolicyName]) -> None:
        for policy in policies:
            if policy != BASE:
                self.console.print(f"calls of the queue: {policy}")
                self.found.added[policy] = await measure_added(self.redis_url, policy)

    async def _run(self, policy: PolicyName, load: str, seed: int) -> Throughput:
        async with self._fleet(policy) as fleet:
            for _ in range(WORKERS):
                await fleet.add(Device(speed=1 / self.slowdown))
            run = await measure_throughput(
                fleet,
                LOADS[load](seed),
                clients=CLIENTS,
                warmup_s=WARMUP_S * self.slowdown,
                seconds=self.seconds * self.slowdown,
            )
        return run.on_faster(self.slowdown)

    async def _join(self, seed: int) -> float:
        async with self._fleet("consistent-hash") as fleet:
            for _ in range(WORKERS):
                await fleet.add(INSTANT)
            return await measure_moved(fleet, LOADS["uniform"](seed), INSTANT)

    async def _unequal(self, kind: str, seed: int) -> float:
        async with self._fleet("weighted-round-robin") as fleet:
            for speed, weight in zip(SPEEDS, WEIGHTS[kind], strict=True):
                await fleet.add(Device(speed=speed / self.slowdown), weight)
            run = await measure_throughput(
                fleet,
                LOADS["uniform"](seed),
                clients=UNEQUAL_CLIENTS,
                warmup_s=UNEQUAL_WARMUP_S * self.slowdown,
                seconds=self.seconds * self.slowdown,
            )
        slow, fast = run.requests.values()
        return fast / slow

    def _fleet(self, policy: PolicyName) -> AbstractAsyncContextManager[Fleet]:
        return running_fleet(fleet_settings(self.redis_url, policy, self.slowdown))

"""`headrace bench gateway`: the same API with and without keys, limits, usage records and request log, in pairs.

Two API processes share one queue and one worker on the scripted engine. Each pair measures both in turn: first jobs
of one token at a fixed rate, from the submit to its 202, and then streams.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from headrace.bench.gateway.jobs import submit_at_rate
from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.full_stack import cpu_seconds, full_stack
from headrace.bench.harness.load import Load, Target, drive
from headrace.bench.harness.report import Report, Spread, require_complete
from headrace.bench.harness.server import running_server
from headrace.bench.harness.timed_stream import Sample
from headrace.bench.harness.workload import WorkItem
from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from shared.models.model_store import SCRIPTED
from shared.redis.embedded import EmbeddedServer
from shared.runtime.sockets import free_port
from shared.settings import ENV_PREFIX, load

STREAMS = 64  # at a time
TOKENS = 200  # of an answer
PACE_MS = 10  # between two tokens
START_TIMEOUT_S = 60.0
SETTLE_S = 1.0  # in which the last requests end and their usage is written
JOB = {"model": SCRIPTED, "prompt": "What is a headrace, and where does it bring the water?", "max_tokens": 1}
PLAN = {  # limits of every kind, too high to be reached
    "requests": "100000/minute; 1000000/hour",
    "tokens": "100000000/minute",
    "concurrent": 10_000,
    "tokens_per_day": 10_000_000_000,
}
COMMON_SETTINGS = {"max_num_seqs": 256, "queue_depth": 100_000, "tenant_queue_depth": 100_000}
FULL_SETTINGS = {
    "auth": True,
    "plans": json.dumps({"all": PLAN}),
    "address_requests": "100000/minute",
    "log_format": "json",
}


@dataclass(frozen=True)
class Run:
    """One side of a pair, in seconds. CPU is the API process's time per request and per streamed token."""

    latency: Spread
    cpu_request: float
    cpu_token: float


@dataclass(frozen=True)
class Pair:
    without: Run
    full: Run
    foreign: float


@dataclass(frozen=True)
class GatewayCost:
    """All pairs, and the medians over them."""

    rate: float
    pairs: list[Pair]

    def as_dict(self) -> dict[str, Any]:
        def median(of: Callable[[Pair], float]) -> float:
            return statistics.median(of(pair) for pair in self.pairs)

        return {
            "rate": self.rate,
            "pairs": [asdict(pair) for pair in self.pairs],
            "added_p50": median(lambda pair: pair.full.latency.p50 - pair.without.latency.p50),
            "added_p99": median(lambda pair: pair.full.latency.p99 - pair.without.latency.p99),
            "added_cpu_request": median(lambda pair: pair.full.cpu_request - pair.without.cpu_request),
            "cpu_token": median(lambda pair: pair.full.cpu_token),
            "cpu_token_without": median(lambda pair: pair.without.cpu_token),
        }

    def table(self) -> Table:
        table = Table("pair", "", "p50", "p99", "CPU per request", "CPU per streamed token", "foreign load")
        for number, pair in enumerate(self.pairs, 1):
            for name, run in (("without", pair.without), ("with", pair.full)):
                table.add_row(str(number), name, *_cells(run), f"{pair.foreign:.1%}")
        found = self.as_dict()
        table.add_section()
        table.add_row(
            "median", "added", f"{found['added_p50'] * 1e3:.2f} ms", f"{found['added_p99'] * 1e3:.2f} ms",
            f"{found['added_cpu_request'] * 1e6:.0f} µs",
            f"{(found['cpu_token'] - found['cpu_token_without']) * 1e6:.1f} µs", "",
        )  # fmt: skip
        return table


def _cells(run: Run) -> tuple[str, ...]:
    return (
        f"{run.latency.p50 * 1e3:.2f} ms",
        f"{run.latency.p99 * 1e3:.2f} ms",
        f"{run.cpu_request * 1e6:.0f} µs",
        f"{run.cpu_token * 1e6:.1f} µs",
    )


@dataclass(frozen=True)
class Side:
    target: Target
    process: psutil.Process


def measure_gateway(rate: float, seconds: float, repeats: int, console: Console) -> GatewayCost:
    """Measure `repeats` pairs. Raises HeadraceError if a side does not start or a request fails."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        server = EmbeddedServer(Path(folder) / "valkey", appendfsync="no")  # the disk is not what is measured
        server.start()
        common = {**COMMON_SETTINGS, "redis_url": server.local_url}
        try:
            with (
                full_stack(SCRIPTED, settings={**common, "usage": False}) as stack,
                _full(Path(folder), common) as full,
                asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
            ):
                without = Side(Target(stack.url, SCRIPTED), stack.process("api"))
                pairs = []
                for number in range(repeats):
                    console.print(f"pair {number + 1} of {repeats}")
                    pairs.append(runner.run(_pair(without, full, rate, seconds, swapped=number % 2 == 1)))
        finally:
            server.stop()
    return GatewayCost(rate, pairs)


@contextmanager
def _full(folder: Path, common: dict[str, Any]) -> Iterator[Side]:
    """Run an API process with all features on, and create a key for it. Its log goes to a file."""
    given = {
        **common,
        **FULL_SETTINGS,
        "data_dir": folder / "accounts",
        "model": SCRIPTED,
        "port": free_port("127.0.0.1"),
    }
    settings = load({**given, "default_plan": "all"}).settings
    environment = {f"{ENV_PREFIX}{name}".upper(): str(value) for name, value in given.items()}
    url = f"http://127.0.0.1:{settings.port}"
    command = [sys.executable, "-m", "headrace", "api"]
    environment["HEADRACE_DEFAULT_PLAN"] = "all"
    with running_server(command, url, timeout=START_TIMEOUT_S, probe="/live", environment=environment) as process:

        async def key() -> str:
            async with Database.from_settings(settings) as database:
                return (await ApiKeys(database, pepper_of(settings)).create(tenant="bench", scopes=Scopes()))[1]

        yield Side(Target(url, SCRIPTED, key=asyncio.run(key())), process)


async def _pair(without: Side, full: Side, rate: float, seconds: float, *, swapped: bool) -> Pair:
    with foreign_load() as during:
        runs = {
            side.target.url: await _run(side, rate, seconds)
            for side in ((full, without) if swapped else (without, full))
        }
    return Pair(runs[without.target.url], runs[full.target.url], during.share)


async def _run(side: Side, rate: float, seconds: float) -> Run:
    await submit_at_rate(side.target, JOB, rate, int(rate))  # warms up Lua scripts and caches
    begin = cpu_seconds(side.process)
    latencies = await submit_at_rate(side.target, JOB, rate, int(rate * seconds))
    await asyncio.sleep(SETTLE_S)
    request = (cpu_seconds(side.process) - begin) / len(latencies)
    begin = cpu_seconds(side.process)
    streamed = await _drive(side, [WorkItem(f"[pace {PACE_MS}]", 9, TOKENS)] * STREAMS, Load(STREAMS))
    return Run(Spread.from_values(latencies), request, (cpu_seconds(side.process) - begin) / streamed.output_tokens)


async def _drive(side: Side, items: list[WorkItem], load: Load) -> Report:
    samples: list[Sample] = []
    start = time.perf_counter()
    await drive(side.target, items, load, samples.append)
    report = Report.from_samples(samples, time.perf_counter() - start)
    require_complete(report)
    return report
